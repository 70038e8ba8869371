"""The speed recipe on a few images: what is trained when, and what is reported."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import airbench94  # noqa: E402
import cifar10_arrays  # noqa: E402
from airbench94 import Recipe, Trainer, make_optimizer  # noqa: E402

EPOCHS, BATCH, STEPS = 4, 8, 2
RANDOM = np.random.RandomState(0)


def data(count):
    images = RANDOM.randint(0, 256, (count, 32, 32, 3), np.uint8)
    return images, np.arange(count, dtype=np.int32) % 4


@pytest.fixture(scope="module")
def trainer():
    recipe = Recipe(
        epochs=EPOCHS, batch_size=BATCH, precision="float32", jit_compile=False, width=0.375
    )
    return Trainer(recipe, data(STEPS * BATCH + 3), data(11))


def functions(trainer):
    """How often each of the two functions of a step was traced."""
    return {
        trains: len(function.traced[0]._list_all_concrete_functions())
        for trains, function in trainer._freezing._functions.items()
    }


@pytest.fixture(scope="module")
def trained(trainer):
    """The results of three trainings, and how often the steps had been traced after each."""
    rows = []
    for seed in (1, 2, 1):
        rows.append(trainer.train(seed=seed))
        rows[-1]["traces"] = functions(trainer)
    return rows


def test_a_training_repeats_in_the_same_process(trained):
    first, second, third = ({name: row[name] for name in ("loss", "accuracy")} for row in trained)
    assert first == third != second


def test_nothing_is_traced_after_the_first_training(trained):
    assert set(trained[0]["traces"]) == {True, False}
    assert trained[0]["traces"] == trained[1]["traces"] == trained[2]["traces"]


def test_it_reports_seconds_that_add_up(trained):
    for row in trained:
        parts = row["whitening"] + row["training"] + row["evaluation"]
        assert row["seconds"] == pytest.approx(parts)
        assert 0 <= row["accuracy_plain"] <= 1
        assert np.isfinite(row["loss"])


def test_every_step_is_made(trainer, trained):
    assert int(trainer.optimizer.iterations.numpy()) == trainer.steps == EPOCHS * STEPS


def test_the_bias_trains_three_epochs(trainer):
    whiten = trainer.model.get_layer("whiten")
    values = []
    for frozen in (False, True):
        before = whiten.bias.numpy(), whiten.kernel.numpy()
        trainer.optimizer.iterations.assign(0)
        trainer._fit(trainer._batches(0, trainer._resident), STEPS, frozen=frozen)
        np.testing.assert_array_equal(whiten.kernel.numpy(), before[1])
        values.append(bool((whiten.bias.numpy() != before[0]).any()))
    assert values == [True, False]


def test_the_rates_fall_linearly_to_zero():
    optimizer = make_optimizer(Recipe(), 25)
    rates = [
        [float(group.learning_rate(step)) for group in optimizer.groups]
        for step in (0, 25, 75, 100, 200)
    ]
    expected = [
        [0.24, 0.053, 0.053, 0.67],
        [0.21, 0.053 * 2 / 3, 0.053 * 7 / 8, 0.67 * 7 / 8],
        [0.15, 0, 0.053 * 5 / 8, 0.67 * 5 / 8],
        [0.12, 0, 0.053 / 2, 0.67 / 2],
        [0, 0, 0, 0],
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)


def test_each_variable_has_the_settings_of_the_recipe(trainer):
    found = {}
    fixed = trainer.model.get_layer("whiten").kernel
    for variable in trainer.optimizer._trainable_variables:
        assert variable is not fixed
        group = trainer.optimizer._group_of[id(variable)]
        decay = group.weight_decay * float(group.learning_rate(0))
        found[variable.path] = (group.muon, group.momentum, pytest.approx(decay))
    filters = {f"group{n}_conv{m}/kernel" for n in (1, 2, 3) for m in (1, 2)}
    shifts = {f"group{n}_norm{m}/beta" for n in (1, 2, 3) for m in (1, 2)}
    assert set(found) == filters | shifts | {"whiten/bias", "head/kernel"}
    assert {found[name][:2] for name in filters} == {(True, 0.6)}
    for name in set(found) - filters:
        assert found[name] == (False, 0.85, 2e-6 * BATCH)


def test_the_loss_is_the_sum_of_smoothed_cross_entropies(trainer):
    logits, labels = RANDOM.normal(size=(5, 4)).astype(np.float32), np.arange(5) % 4
    loss = trainer.model.loss(labels, tf.constant(logits))
    log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = 0.8 * np.eye(4)[labels] + 0.2 / 4
    assert float(loss) == pytest.approx(-(targets * log).sum(), rel=1e-5)


def test_the_evaluation_counts_rightly(trainer, trained):
    from tfgpu.models.airbench import VIEW_WEIGHTS, view_logits

    plain = averaged = 0
    for images, labels in trainer._test:
        logits = view_logits(trainer.model, images).numpy()
        plain += (logits[0].argmax(axis=1) == labels.numpy()).sum()
        mean = np.tensordot(VIEW_WEIGHTS, logits, 1)
        averaged += (mean.argmax(axis=1) == labels.numpy()).sum()
    found = np.sum([trainer._correct(*part).numpy() for part in trainer._test], axis=0)
    assert found.tolist() == [plain, averaged]


@pytest.mark.parametrize("warm_up", [False, True])
def test_tracing_counts_where_no_training_comes_before(trainer, monkeypatch, warm_up):
    labels = []

    def train(self, *, seed, random_labels=False):
        labels.append("random" if random_labels else "real")
        return dict.fromkeys(("accuracy", "accuracy_plain", "loss"), 0.5) | dict.fromkeys(
            ("whitening", "training", "evaluation", "seconds"), 1.0
        )

    about = dict.fromkeys(("name", "version", "fingerprint", "coding"), "")
    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setattr(airbench94, "Trainer", lambda *_: trainer)
    monkeypatch.setattr(airbench94, "load", lambda *_, **__: (data(4), data(4), about))
    result = airbench94.run(trainer.recipe, runs=2, warm_up=warm_up, say=lambda _: None)
    assert labels == [*(["random"] if warm_up else []), "real", "real"]
    assert ("and tracing and compilation" in result["counted"]) == (not warm_up)
    assert (result["first_training_seconds"] is None) == (not warm_up)


@pytest.mark.parametrize(("encoding", "coding"), [("png", "PNG"), ("jpeg", "JPEG")])
def test_what_is_written_says_how_the_images_are_coded(tmp_path, monkeypatch, encoding, coding):
    import tensorflow_datasets as tfds

    from tfgpu.data import tfds_source

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            image = tfds.features.Image(shape=(32, 32, 3), encoding_format=encoding)
            label = tfds.features.ClassLabel(num_classes=4)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for number, (image, label) in enumerate(zip(*data(4), strict=True)):
                yield number, {"image": image, "label": label}

    with tfds_source.quiet():
        Cifar10(data_dir=str(tmp_path)).download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert cifar10_arrays.load(None)[2]["coding"] == coding


def test_data_that_are_missing_end_with_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        airbench94.main(["--runs=1", f"--data_dir={tmp_path}"])
    assert ended.value.code == 3
    assert capsys.readouterr().err.startswith("tfgpu: 'cifar10' is not prepared in")
