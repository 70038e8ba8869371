"""Sound: spectrogram, models and augmentation by themselves, and recordings through commands."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import command
from mocked import mocked
from sounded import features, tone, wav, write
from task_runs import assert_same, loaded, result_of, train_run, weights

from tfgpu.data.augmentations.mixup import mixup_recordings
from tfgpu.data.augmentations.shift import MOST, shift
from tfgpu.errors import DataError, RequestError
from tfgpu.evaluate import __main__ as evaluate
from tfgpu.export import __main__ as export
from tfgpu.models import audio as models
from tfgpu.models.audio import FLOOR, Input, Spectrogram
from tfgpu.predict import __main__ as predict
from tfgpu.tasks import loading
from tfgpu.tasks.audio import AUGMENT, TASK
from tfgpu.tasks.audio.predictor import AudioPredictor
from tfgpu.tasks.audio.reading import to_samples

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

RANDOM = np.random.RandomState(0)
SPECTROGRAM = Spectrogram(rate=4000, frame=100, hop=40, mels=12, low=20.0, high=2000.0)
BUILDERS = {"convolution": models.convolution, "recurrent": models.recurrent}
READY = Input(length=9, features=5, mean=(100.0,) * 5, deviation=(30.0,) * 5)


# ---- the spectrogram -----------------------------------------------------------------------


@pytest.mark.parametrize("frame", [100, 128])
def test_the_convolution_is_the_fast_fourier_transform(frame):
    made = Spectrogram(rate=4000, frame=frame, hop=40, mels=12, low=20.0, high=2000.0)
    samples = np.stack([tone(RANDOM, 700), tone(RANDOM, 60)]).astype(np.float32) / 2**15
    inputs = keras.Input((samples.shape[1],))
    model = keras.Model(inputs, models.log_mel(inputs, made))
    found = model(samples).numpy()
    expected = np.stack([made.of(one) for one in samples])
    assert found.shape == (2, made.frames(samples.shape[1]), 12)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_bands_are_those_of_tensorflow():
    theirs = tf.signal.linear_to_mel_weight_matrix(12, 65, 4000, 20.0, 2000.0).numpy()
    np.testing.assert_allclose(SPECTROGRAM.mel_weights(), theirs, atol=1e-4)


def test_a_sine_of_full_scale_has_a_quarter_in_its_bin():
    made = Spectrogram(rate=4000, frame=128, hop=40, mels=8, low=20.0, high=2000.0)
    bins = np.arange(made.fft_length // 2 + 1)
    sine = np.sin(2 * np.pi * 20 / 128 * np.arange(128))
    power = (sine @ made.basis(bins)).reshape(2, -1)
    np.testing.assert_allclose((power**2).sum(axis=0)[20], 0.25, rtol=1e-3)
    assert made.of(np.zeros(128)).max() == pytest.approx(np.log(FLOOR))


def test_whole_frames_are_counted():
    lengths = np.array([1, 99, 100, 139, 140, 1600])
    np.testing.assert_array_equal(SPECTROGRAM.frames(lengths), [1, 1, 1, 1, 2, 38])
    assert SPECTROGRAM.frames(1600) == len(SPECTROGRAM.of(np.zeros(1600)))


# ---- models --------------------------------------------------------------------------------


def built(name, given, **changes):
    keras.utils.set_random_seed(0)
    return BUILDERS[name](input=given, num_classes=3, width=0.125, depth=1, **changes)


def recordings(given, real):
    """x of one recording for each length, other ones behind it, and the same with zeros."""
    if given.spectrogram is None:
        values = RANDOM.normal(100, 30, (len(real), given.length, given.features))
        x = {"features": values.astype(np.float32)}
    else:
        x = {"samples": np.stack([tone(RANDOM, 600)[: given.length] for _ in real])}
    length = np.array(real, np.int32)
    (name,) = x
    inside = np.arange(given.length) < length[:, None]
    inside = inside.reshape(*inside.shape, *[1] * (x[name].ndim - 2))
    zeros = np.where(inside, x[name], 0).astype(x[name].dtype)
    return {**x, "length": length}, {name: zeros, "length": length}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("kind", ["samples", "features"])
def test_padding_changes_no_output(name, kind):
    if kind == "samples":
        longer, real = Input(length=700, spectrogram=SPECTROGRAM), [1, 60, 260, 500]
        short = Input(length=501, spectrogram=SPECTROGRAM)
    else:
        longer, real = READY, [1, 3, 5, 6]
        short = Input(length=6, features=5, mean=READY.mean, deviation=READY.deviation)
    model, same = built(name, longer), built(name, short)
    anything, zeros = recordings(longer, real)
    expected = model(zeros).numpy()
    assert np.isfinite(expected).all() and np.ptp(expected, axis=0).min() > 1e-4
    np.testing.assert_allclose(model(anything).numpy(), expected, atol=1e-6)
    same.set_weights(model.get_weights())
    cut = {n: v if n == "length" else v[:, : short.length] for n, v in anything.items()}
    np.testing.assert_allclose(same(cut).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_model_depends_on_the_order_of_the_frames(name):
    x, _ = recordings(READY, [9])
    turned = {"features": x["features"][:, ::-1], "length": x["length"]}
    model = built(name, READY)
    assert np.abs(model(x).numpy() - model(turned).numpy()).max() > 1e-4


def test_how_loud_a_recording_is_changes_little():
    given = Input(length=1600, spectrogram=SPECTROGRAM)
    x, _ = recordings(given, [1600])
    louder = {"samples": x["samples"] * 2, "length": x["length"]}
    model = built("convolution", given)
    np.testing.assert_allclose(model(louder).numpy(), model(x).numpy(), atol=0.02)


def test_the_transform_is_not_trained():
    model = built("convolution", Input(length=700, spectrogram=SPECTROGRAM))
    fixed = {each.path.split("/")[0] for each in model.non_trainable_variables}
    assert fixed == {"fourier", "mel"}


def test_sizes_that_make_no_model_are_refused():
    with pytest.raises(ValueError, match="recurrent needs a width above 0"):
        models.recurrent(input=READY, num_classes=2, width=0)


# ---- augmentation --------------------------------------------------------------------------


def padded(dtype, *, rest=()):
    lengths = np.array([20, 13, 7, 1], np.int32)
    values = RANDOM.randint(1, 1000, (4, 20, *rest)).astype(dtype)
    for one, length in zip(values, lengths, strict=True):
        one[length:] = 0
    return values, lengths


def mixed(values, lengths, draws, others, theirs):
    tensors = map(tf.constant, (values, lengths, draws, others, theirs))
    return [part.numpy() for part in mixup_recordings(*tensors)]


@pytest.mark.parametrize(("dtype", "rest"), [("int16", ()), ("float32", (3,))])
def test_a_shift_is_that_of_numpy(dtype, rest):
    values, lengths = padded(dtype, rest=rest)
    moves = set()
    for draw in (0.0, 0.3, 0.5, 0.99):
        draws = np.full((4, 1), draw, np.float32)
        found, now = (part.numpy() for part in shift(tf.constant(values), lengths, draws))
        for one, length, moved, after in zip(values, lengths, found, now, strict=True):
            by = max(int(draw * 5) - 2, -(length // 2))  # 2: a tenth of 20.
            real = one[:length]
            real = np.concatenate([np.repeat(real[:1], by, 0), real]) if by > 0 else real[-by:]
            expected = np.zeros_like(one)
            expected[: len(real[:20])] = real[:20]
            np.testing.assert_array_equal(moved, expected)
            assert after == len(real[:20]) and moved.dtype == one.dtype
            moves.add(by)
    assert moves >= {-2, -1, 0, 2} and MOST == 0.1


def test_samples_are_mixed_by_adding_them_up():
    values, lengths = padded("int16")
    others, theirs = values[::-1].copy(), lengths[::-1].copy()
    draws = np.array([[0.0], [0.25], [0.5], [0.9]], np.float32)
    found, longer = mixed(values, lengths, draws, others, theirs)
    np.testing.assert_allclose(found, draws * values + (1 - draws) * others, atol=0.5)
    np.testing.assert_array_equal(longer, np.maximum(lengths, theirs))
    assert found.dtype == np.int16


def test_of_mixed_features_the_longer_goes_on_alone():
    values, lengths = padded("float32", rest=(3,))
    others, theirs = values[::-1].copy(), lengths[::-1].copy()
    draws = np.full((4, 1), 0.25, np.float32)
    found = mixed(values, lengths, draws, others, theirs)[0]
    np.testing.assert_allclose(found[0, 0], 0.25 * values[0, 0] + 0.75 * others[0, 0], rtol=1e-5)
    np.testing.assert_allclose(found[0, 1:], values[0, 1:], rtol=1e-5)
    np.testing.assert_allclose(found[3, 1:], others[3, 1:], rtol=1e-5)
    assert (found[1, 13:] == 0).all()


def test_classes_are_mixed_in_the_same_shares():
    values, lengths = padded("int16")
    x = {"samples": tf.constant(values), "length": tf.constant(lengths)}
    y, draws = np.eye(4, dtype=np.float32), RANDOM.uniform(size=(4, 1)).astype(np.float32)
    _, found = AUGMENT["mixup"].function(x, y, tf.constant(draws), x, y[::-1])
    np.testing.assert_allclose(found, draws * y + (1 - draws) * y[::-1])


# ---- what is read --------------------------------------------------------------------------


def load(name, *, options=None, **changes):
    settings = {"data_dir": None, "validation_fraction": 0.2, "image_size": None, "seed": 0}
    given = {**TASK.options, **(options or {})}
    return loading.load(name, options=lambda task: given, **settings | changes)


def test_a_folder_of_wav_files_is_known(tmp_path):
    write(tmp_path / "a", 10)
    data = load(f"folder:{tmp_path / 'a'}", options={"seconds": 0.3})
    assert data.task is TASK and data.class_names == ("high", "low")
    x, y = data.train.load_arrays()
    assert x["samples"].dtype == np.int16 and x["samples"].shape[1] == 1200
    assert (x["length"] <= 1200).all() and set(y) == {0, 1}
    assert all((one[n:] == 0).all() for one, n in zip(x["samples"], x["length"], strict=True))
    assert "4000 Hz; the first 0.30 s, 28 frames of 40 bands" in data.notes[0]


def test_another_rate_can_be_asked_for(tmp_path):
    write(tmp_path / "a", 5)
    data = load(f"folder:{tmp_path / 'a'}", options={"rate": 2000, "mels": 10})
    whole = load(f"folder:{tmp_path / 'a'}", options={"mels": 10})
    assert data.spec.fitted["rate"] == 2000 and "resampled from 4000 Hz" in data.notes[0]
    half, full = (each.train.load_arrays()[0]["length"] for each in (data, whole))
    assert (np.abs(half - full / 2) <= 1).all()


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_features_are_standardised_by_the_training_split_alone(tmp_path):
    arrays = features(60)
    data = load(save(tmp_path / "a.npz", **arrays))
    assert data.task is TASK and data.class_names == ("3", "8")
    x, _ = data.train.load_arrays()
    real = np.arange(x["features"].shape[1]) < x["length"][:, None]
    frames = x["features"][real].astype(np.float64)
    np.testing.assert_allclose(data.spec.fitted["mean"], frames.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.spec.fitted["deviation"], frames.std(0), rtol=1e-6)
    assert np.abs(frames.mean(0) - arrays["X"].mean(0)).min() > 1e-3


def test_a_feature_that_never_changes_is_zero():
    constant = Input(length=9, features=5, mean=(1e5,) * 5, deviation=(0.0, 1e-3, 30.0, 30.0, 30.0))
    np.testing.assert_array_equal(constant.scale, [1, 1, 30, 30, 30])


def test_a_finished_model_takes_what_it_was_trained_on_alone(tmp_path):
    fitted = load(save(tmp_path / "a.npz", **features(60))).spec.fitted
    other = save(tmp_path / "b.npz", **features(60, size=4))
    with pytest.raises(DataError, match="and the model takes frames of 5 features"):
        load(other, fitted=fitted)
    sounds = f"folder:{write(tmp_path / 'c', 3)}"
    with pytest.raises(DataError, match="WAV files at 4000 Hz, and the model takes frames of 5"):
        load(sounds, fitted=fitted)


def test_a_recording_far_longer_than_most_is_cut(tmp_path):
    lengths = np.array([8] * 30 + [400])
    x = RANDOM.normal(size=(lengths.sum(), 4))
    name = save(tmp_path / "a.npz", x=x, lengths=lengths, y=np.resize([0, 1], 31))
    data = load(name, validation_fraction=0.0, seed=1)
    assert data.spec.fitted["length"] <= 32 and "are longer" in data.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 8}, "frames=8 has no meaning for samples"),
        ({"mels": 0}, "mels=0: must be at least 1"),
        ({"mels": 400}, "mels=400: band 0 is narrower than the bins of a frame of 100 samples"),
        ({"high": 3000.0}, "bands lie between 0 and half the rate, 2000 Hz"),
        ({"hop_ms": 30.0}, "hop_ms=30.0: must not exceed frame_ms"),
        ({"seconds": -1.0}, "seconds=-1.0: must be at least 0"),
    ],
)
def test_options_that_make_no_spectrogram_are_refused(tmp_path, options, message):
    write(tmp_path / "a", 3)
    with pytest.raises(RequestError, match=message):
        load(f"folder:{tmp_path / 'a'}", options=options)


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [
        pytest.param(np.float32, 1 / 2**15, 0, id="floats"),
        pytest.param(np.float32, 1.0, 0, id="floats of whole numbers"),
        pytest.param(np.int32, 2**16, 0, id="32 bits"),
        pytest.param(np.int64, 1, 0, id="as TFDS has them"),
        pytest.param(np.uint8, 1 / 256, 128, id="8 bits"),
    ],
)
def test_samples_of_any_type_are_the_same_sound(dtype, scale, offset):
    sound = np.round(32000 * np.sin(np.arange(200) / 9)).astype(np.int64) // 256 * 256
    found = to_samples(tf.constant((sound * scale + offset).astype(dtype))).numpy().astype(float)
    assert found.max() > 30000  # Without being cut off.
    np.testing.assert_allclose(found * (sound.max() / found.max()), sound, atol=300)


def test_data_that_do_not_fit_are_refused(tmp_path):
    arrays = features(20)
    with pytest.raises(RequestError, match="seconds=1.0 has no meaning for ready features"):
        load(save(tmp_path / "a.npz", **arrays), options={"seconds": 1.0})
    one = {**arrays, "y": arrays["y"] * 0}
    with pytest.raises(DataError, match="holds one class only, '0'"):
        load(save(tmp_path / "a.npz", **one))
    with pytest.raises(RequestError, match="is not an audio-classification set"):
        load(save(tmp_path / "a.npz", x=np.zeros((20, 4)), y=arrays["y"]), task="audio")


@pytest.mark.parametrize(
    ("name", "rate"),
    [pytest.param("speech_commands", 16000, marks=pytest.mark.slow), ("spoken_digit", 8000)],
)
def test_sets_of_tfds_are_known_by_their_features(tmp_path, name, rate):
    rows = mocked(name, tmp_path, 12)
    data = load(name, data_dir=str(tmp_path), validation_fraction=0.0)
    assert data.task is TASK and data.spec.fitted["rate"] == rate
    x, y = data.test.load_arrays()
    assert x["samples"].dtype == np.int16 and sorted(y) == sorted(row["label"] for row in rows)


# ---- the commands --------------------------------------------------------------------------

SETTINGS = ["--batch_size=16", "--width=0.25", "--seed=1", "--progress=none", "--augment=shift"]
SETTINGS += ["--depth=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("audio")
    write(place / "sounds", 40)
    save(place / "features.npz", **features(80))
    return place


def trained(place, name, *flags, data="features"):
    dataset = f"npz:{place}/features.npz" if data == "features" else f"folder:{place}/sounds"
    options = "--task_options=frames=10" if data == "features" else "--task_options=mels=12"
    return train_run(dataset, place / name, options, "--epochs=4", *SETTINGS, *flags)


@pytest.fixture(scope="module")
def run(place):
    return trained(place, "run", "--devices=CPU:0", "--epochs=8", data="samples")


def test_a_run_on_samples_learns(run):
    result = result_of(run)
    assert result["status"] == "finished" and result["model"] == "convolution"
    assert result["test_accuracy"] > 0.9


def test_evaluate_finds_the_test_again(run, tmp_path):
    argv = (f"--run_dir={run}", f"--out={tmp_path}", "--devices=CPU:0,CPU:1")
    assert command(evaluate.main, *argv) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    for name in ("loss", "accuracy"):
        assert found[name] == pytest.approx(result_of(run)[f"test_{name}"], rel=1e-4)
    assert [each["name"] for each in found["classes"]] == ["high", "low"]


def test_predict_reads_files_and_folders(run, tmp_path, capsys):
    high, low = tone(RANDOM, 1400, rate=8000), tone(RANDOM, 500)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "high.wav").write_bytes(wav(np.stack([high] * 2, 1), channels=2, rate=8000))
    (tmp_path / "a" / "low.WAV").write_bytes(wav(low))
    (tmp_path / "a" / "none.wav").write_bytes(wav(b""))
    capsys.readouterr()
    assert command(predict.main, f"--run_dir={run}", "--format=jsonl", tmp_path / "a") == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["label"] for row in rows] == ["high", "low"]
    assert "none.wav has a length of zero" in captured.err
    (said,) = (line for line in captured.err.splitlines() if line.startswith("tfgpu: recordings: "))
    assert "1 of 8000 Hz, resampled to the 4000 Hz of training (high.wav)" in said
    assert "1 of several channels, mixed down to one (high.wav)" in said
    assert "2 longer than the 0.395 s that are read (" in said


def test_features_longer_than_the_model_takes_are_cut_and_said(tmp_path):
    save(tmp_path / "a.npz", **features(20))
    spec = load(f"npz:{tmp_path}/a.npz", options={"frames": 6}).spec
    predictor = AudioPredictor(spec, None)
    rows = [predictor.load(item) for item in predictor.find([f"{tmp_path}/a.npz"])]
    assert {row["features"].shape for row in rows} == {(6, 5)}
    assert "longer than the 6 frames that are read (a.npz:" in str(predictor.remarks)


@pytest.mark.slow
def test_predict_reads_arrays_and_names_their_rows(place, tmp_path, capsys):
    run = trained(place, "arrays", "--devices=CPU:0", "--tensorboard=none")
    arrays = features(4, seed=1)
    np.savez(tmp_path / "a.npz", X=arrays["X"], lengths=arrays["lengths"])
    np.savez(tmp_path / "b.npz", Z=arrays["X"], lengths=arrays["lengths"])
    capsys.readouterr()
    argv = (f"--run_dir={run}", "--format=jsonl", tmp_path / "a.npz", tmp_path / "b.npz")
    assert command(predict.main, *argv) == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["label"] for row in rows] == ["3", "8", "3", "8"]
    assert rows[1]["path"] == f"{tmp_path}/a.npz:1"
    assert "has no array 'X' of frames of 5 features" in captured.err
    assert_same(*loaded(run, tmp_path / "a.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("data", ["samples", "features"])
@pytest.mark.parametrize("augment", ["shift", "shift,mixup"])
def test_streaming_gives_the_same_bits(place, data, augment):
    flags = ("--devices=CPU:0", f"--augment={augment}", "--tensorboard=none")
    resident, streaming = (
        trained(place, f"{data}-{augment}-{way}", *flags, f"--input={way}", data=data)
        for way in ("resident", "streaming")
    )
    for ours, theirs in zip(weights(resident), weights(streaming), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["samples", "features"])
@pytest.mark.parametrize("name", BUILDERS)
def test_two_replicas_compute_what_one_does(place, name, data):
    flags = (f"--model={name}", "--tensorboard=none", "--augment=shift,mixup", "--epochs=2")
    one = trained(place, f"{name}-{data}-1", "--devices=CPU:0", *flags, data=data)
    two = trained(place, f"{name}-{data}-2", "--devices=CPU:0,CPU:1", *flags, data=data)
    for each in ("loss", "val_loss", "test_loss"):
        assert result_of(two)[each] == pytest.approx(result_of(one)[each], rel=5e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_a_continued_run_has_the_same_bits(place, name):
    flags = ("--devices=CPU:0", f"--model={name}", "--tensorboard=none")
    flags += ("--lr_schedule=constant", "--warmup_epochs=0")
    whole = trained(place, f"{name}-whole", *flags)
    trained(place, f"{name}-part", *flags, "--epochs=1")
    part = trained(place, f"{name}-part", *flags)
    for ours, theirs in zip(weights(whole), weights(part), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["samples", "features"])
@pytest.mark.parametrize("name", BUILDERS)
def test_xla_and_mixed_precision_train_it(place, name, data):
    flags = ("--jit_compile=true", "--precision=mixed_bfloat16", "--epochs=2", "--tensorboard=none")
    run = trained(place, f"{name}-{data}-xla", f"--model={name}", *flags, data=data)
    assert np.isfinite(result_of(run)["test_loss"])


@pytest.mark.slow
@pytest.mark.parametrize("data", ["samples", "features"])
@pytest.mark.parametrize("name", BUILDERS)
def test_exported_files_give_probabilities(place, tmp_path, name, data):
    flags = (f"--model={name}", "--tensorboard=none", "--devices=CPU:0")
    run = trained(place, f"{name}-{data}-exported", *flags, data=data)
    formats = "--formats=keras,saved_model,onnx,litert"
    assert command(export.main, f"--run_dir={run}", f"--out={tmp_path}", formats) == 0
    stated = json.loads((tmp_path / "export.json").read_text())
    assert all(each["accepted"] for each in stated["files"])
    if data == "features":
        return
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    length = dict((each.name, each.shape) for each in session.get_inputs())["samples"][1]
    samples = np.zeros((1, length), np.float32)
    high = tone(RANDOM, 1400)[:length]
    samples[0, : len(high)] = high / 2**15
    given = {"samples": samples, "length": np.array([len(high)], np.int32)}
    assert session.run(None, given)[0].argmax() == 0


@pytest.mark.slow
def test_the_int8_file_is_of_features_alone(place, tmp_path):
    run = trained(place, "int8", "--tensorboard=none", "--devices=CPU:0")
    flags = ("--formats=litert_int8", "--max_accuracy_difference=0.2")
    assert command(export.main, f"--run_dir={run}", f"--out={tmp_path / 'a'}", *flags) == 0
    other = trained(place, "int8-samples", "--tensorboard=none", "--devices=CPU:0", data="samples")
    assert command(export.main, f"--run_dir={other}", f"--out={tmp_path / 'b'}", *flags) == 1
    stated = json.loads((tmp_path / "b" / "export.json").read_text())["files"][0]["verdict"]
    assert "which 8 bits do not; take litert" in stated
