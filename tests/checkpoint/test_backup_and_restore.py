"""A training that was interrupted and resumed ends with the bits of one that was not."""

import contextlib
import errno

import keras
import numpy as np
import pytest
import tensorflow as tf
from backed_up import (
    BATCH,
    EPOCHS,
    EXAMPLES,
    IMAGES,
    LABELS,
    KillAfter,
    Killed,
    build,
    resumed,
    same,
    state,
    train,
)
from stores import posix, writer

import tfgpu
from tfgpu.checkpoint import store
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import training_batches
from tfgpu.errors import Interrupted, RequestError, WorkError


@pytest.mark.parametrize(
    "executions", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 6, 8))]
)
def test_one_replica_resumes_to_the_bit(tmp_path, one, executions):
    whole, logs, _ = train(tmp_path / "whole", one)
    cut, cut_logs, backup = resumed(tmp_path / "cut", one, executions)
    assert backup.resumed_from is not None
    assert same(whole, cut) and logs == cut_logs


@pytest.mark.parametrize("streaming", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_replicas_resume_to_the_bit(tmp_path, mirrored2, streaming):
    whole, logs, _ = train(tmp_path / "whole", mirrored2, streaming=streaming)
    cut, cut_logs, _ = resumed(tmp_path / "cut", mirrored2, 5, streaming=streaming)
    assert same(whole, cut) and logs == cut_logs


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.9),
        lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
    ],
    ids=["average", "accumulation"],
)
def test_optimizer_state_resumes_to_the_bit(tmp_path, one, optimizer):
    whole, _, _ = train(tmp_path / "whole", one, optimizer=optimizer)
    cut, _, _ = resumed(tmp_path / "cut", one, 5, optimizer=optimizer)
    assert same(whole, cut)


class OwnStep(tfgpu.Model):
    """A model that is built by its first step, were it not for the backup."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


@pytest.mark.slow
def test_a_step_of_its_own_resumes_to_the_bit(tmp_path):
    default = tf.distribute.get_strategy()

    def model():
        return build(default, kind=OwnStep, metrics=None)

    whole, _, _ = train(tmp_path / "whole", default, model=model())
    with pytest.raises(Killed):
        train(tmp_path / "cut", default, model=model(), more=[KillAfter(5)])
    cut, _, backup = train(tmp_path / "cut", default, model=model())
    assert backup.resumed_from == 6
    assert same(whole, cut)


@pytest.mark.slow
def test_the_loss_scale_resumes_to_the_bit(tmp_path, one):
    keras.config.set_dtype_policy("mixed_float16")
    whole, _, _ = train(tmp_path / "whole", one)
    cut, _, _ = resumed(tmp_path / "cut", one, 5)
    assert same(whole, cut)


def test_asked_to_stop_it_saves_first(tmp_path, one):
    class Ask(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 4:
                backup.request_stop(15)

    backup = None

    class Catch(keras.callbacks.Callback):
        def set_model(self, model):
            nonlocal backup
            backup = next(c for c in model.tfgpu_callbacks if type(c) is tfgpu.BackupAndRestore)

    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "cut", one, more=[Catch(), Ask()], save_freq="epoch")
    assert stopped.value.exit_code == 143
    whole, logs, _ = train(tmp_path / "whole", one)
    cut, cut_logs, again = train(tmp_path / "cut", one, save_freq="epoch")
    assert again.resumed_from == 6
    assert same(whole, cut) and logs == cut_logs


def test_a_stop_during_validation_keeps_the_epoch(tmp_path, one):
    class Ask(keras.callbacks.Callback):
        def on_test_batch_begin(self, batch, logs=None):
            for callback in self.model.tfgpu_callbacks:
                if type(callback) is tfgpu.BackupAndRestore:
                    callback.request_stop(2)

    with pytest.raises(Interrupted):
        train(tmp_path / "cut", one, more=[Ask()], save_freq="epoch")
    whole, logs, _ = train(tmp_path / "whole", one)
    cut, cut_logs, again = train(tmp_path / "cut", one, save_freq="epoch")
    assert again.resumed_from == 7  # All steps of the first epoch, but not its end.
    assert same(whole, cut) and logs == cut_logs


def test_another_number_of_replicas_goes_on_and_says_so(tmp_path, one, mirrored2):
    with pytest.raises(Killed):
        train(tmp_path, one, more=[KillAfter(5)])
    _, _, backup = train(tmp_path, mirrored2)
    assert backup.resumed_from and not backup.exact
    assert any("replicas: 1 there, 2 now" in text for text in backup.warnings)


@pytest.mark.slow
def test_streaming_in_place_of_resident_input_goes_on_and_says_so(tmp_path, one):
    whole, _, _ = train(tmp_path / "whole", one)
    with pytest.raises(Killed):
        train(tmp_path / "cut", one, more=[KillAfter(5)])
    cut, _, backup = train(tmp_path / "cut", one, streaming=True)
    assert not backup.exact
    assert any('input: "resident" there, "streaming" now' in text for text in backup.warnings)
    for a, b in zip(state(whole), state(cut), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory):
    """The backups of a training that was killed."""
    folder = tmp_path_factory.mktemp("backed_up")
    with pytest.raises(Killed):
        train(folder, tf.distribute.OneDeviceStrategy("CPU:0"), more=[KillAfter(2)])
    return folder


def other_examples(images, labels):
    return Examples(
        len(images),
        lambda positions: (tf.gather(images, positions), tf.gather(labels, positions)),
        lambda image, label: (image, label),
    )


OTHERS = {
    "seed": ({"seed": 4}, ["data.seed: 3 there, 4 now"]),
    "batch size": ({"batch_size": 9}, ["data.batch_size: 8 there, 9 now"]),
    "augmentation": ({"augment": ("flip",)}, ['data.augment.0: "crop" there, "flip" now']),
    "images": ({"examples": other_examples(255 - IMAGES, LABELS)}, ["data.content: "]),
    "labels": ({"examples": other_examples(IMAGES, 3 - LABELS)}, ["data.content: "]),
    "fewer": (
        {"examples": other_examples(IMAGES[:49], LABELS[:49])},
        ["data.examples: 50 there, 49 now"],
    ),
    "layer": ({"rate": 0.4}, [".rate: 0.3 there, 0.4 now"]),
    "metrics": ({"metrics": []}, ['metrics.0: "accuracy" there, not set now']),
    "optimizer": (
        {"optimizer": lambda: keras.optimizers.SGD(0.01)},
        ['optimizer: "Adam" there, "SGD" now'],
    ),
    "learning rate": (
        {"optimizer": lambda: keras.optimizers.Adam(0.02)},
        ["optimizer.learning_rate: 0.0", "there, 0.0"],
    ),
    "schedule": (
        {
            "optimizer": lambda: keras.optimizers.Adam(
                keras.optimizers.schedules.CosineDecay(0.01, 10)
            )
        },
        ['"CosineDecay" now', "optimizer.learning_rate.decay_steps: not set there, 10 now"],
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_training_is_refused_with_the_differences(backed_up, one, other):
    given, said = OTHERS[other]
    before = sorted(path.name for path in backed_up.iterdir())
    with pytest.raises(RequestError) as refused:
        train(backed_up, one, **given)
    assert refused.value.exit_code == 2
    assert all(text in str(refused.value) for text in [*said, str(backed_up)]), refused.value
    assert len(str(refused.value)) < 600 + len(str(backed_up))
    assert sorted(path.name for path in backed_up.iterdir()) == before


def test_a_learning_rate_that_a_callback_lowered_is_no_other_training(tmp_path, one):
    class Lower(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 1e-4

    model = build(one)
    with pytest.raises(Killed):
        train(tmp_path, one, model=model, more=[Lower(), KillAfter(6)])
    # The same process, and so the model as it is by now.
    assert train(tmp_path, one, model=model, more=[Lower()])[2].resumed_from == 9


@pytest.mark.slow
def test_the_average_that_is_in_the_model_is_known_to_be_there(tmp_path, one):
    given = {
        "optimizer": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9),
        "save_freq": "epoch",  # At which end the average is in the place of the weights.
    }

    def swap():
        return keras.callbacks.SwapEMAWeights(swap_on_epoch=True)

    whole, _, _ = train(tmp_path / "whole", one, more=[swap()], **given)
    with pytest.raises(Killed):
        train(tmp_path / "cut", one, more=[swap(), KillAfter(6)], **given)
    cut, _, backup = train(tmp_path / "cut", one, more=[swap()], **given)
    assert backup.resumed_from == 7
    assert same(whole, cut)


def test_a_callback_that_is_left_out_does_not_shift_the_others(tmp_path, one):
    class Notes(keras.callbacks.Callback):
        def get_state(self):
            return {"note": 1}

        def set_state(self, state):
            self.restored = state

    class Read(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            given = self.model.tfgpu_callbacks
            self.wait = [c.wait for c in given if isinstance(c, keras.callbacks.EarlyStopping)]
            self.model.stop_training = True

    # The one that stops early stands behind the one that is left out.
    stop = keras.callbacks.EarlyStopping(monitor="loss", mode="max", patience=9)
    with pytest.raises(Killed):
        train(tmp_path, one, more=[Notes(), stop, KillAfter(10)])
    assert stop.wait == 1
    read, stop = Read(), keras.callbacks.EarlyStopping(monitor="loss", mode="max", patience=9)
    train(tmp_path, one, more=[stop, read])
    assert read.wait[1] == 1


def test_a_full_disk_at_the_end_names_the_backup_that_is_kept(tmp_path, one, monkeypatch):
    class Fill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == EPOCHS - 1:
                monkeypatch.setattr(store, "write_all", full)

    def full(descriptor, data):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with pytest.raises(WorkError) as failed:
        train(tmp_path, one, more=[Fill()], patience=9)
    assert failed.value.exit_code == 5
    assert "Disk quota exceeded" in str(failed.value)
    assert f"{tmp_path / 'step-00000018'} holds the last state" in str(failed.value)


def test_weights_that_are_not_finite_are_never_saved(tmp_path, one):
    with pytest.raises(Killed):
        train(tmp_path, one, more=[KillAfter(4)])
    before = sorted(path.name for path in tmp_path.iterdir())
    model = build(one)

    class Break(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            kernel = self.model.layers[-1].kernel
            kernel.assign(np.full(kernel.shape, np.nan, np.float32))

    _, _, backup = train(tmp_path, one, model=model, more=[Break()])
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert any("not finite" in text for text in backup.warnings)


class Explode(keras.layers.Layer):
    """Overflows once a counter, kept as a weight, has come so far."""

    def __init__(self, at, **given):
        super().__init__(**given)
        self.at = at

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            self.count.assign(self.count + 1)
        factor = tf.where(self.count < self.at, 1.0, np.float32(np.inf))
        return x * tf.cast(factor, x.dtype)


def exploding(strategy, optimizer, *, at):
    keras.utils.set_random_seed(1)
    with strategy.scope():
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
        x = Explode(at)(keras.layers.Dense(5, name="before")(x))
        model = tfgpu.Model(inputs, keras.layers.Dense(4, name="after")(x))
        model.compile(
            optimizer(),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=2,
        )
    return model


def test_the_step_and_the_variable_that_broke_are_found(tmp_path, mirrored2):
    model = exploding(mirrored2, lambda: keras.optimizers.SGD(0.01), at=9)
    _, _, backup = train(tmp_path, mirrored2, model=model, save_freq=4)
    broken = backup.first_breakage(backup.steps_done)
    assert broken.step == 9
    assert broken.variable.startswith("after/")


def test_gradients_that_overflow_because_of_their_scale_are_no_breakage(tmp_path, one):
    keras.config.set_dtype_policy("mixed_float16")

    class Look(KillAfter):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 6:
                backup = next(
                    c for c in self.model.tfgpu_callbacks if type(c) is tfgpu.BackupAndRestore
                )
                self.broken = backup.first_breakage(backup.steps_done)
                raise Killed

    look = Look(0)
    # So high a scale that the first steps are left out, and so not counted.
    model = exploding(
        one,
        lambda: keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.01), initial_scale=2**22
        ),
        at=2,
    )
    with pytest.raises(Killed):
        train(tmp_path, one, model=model, save_freq=1000, more=[look])
    assert 2 < look.broken.step <= 7


def test_any_other_data_set_is_refused_with_the_way_out(tmp_path, one):
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(BATCH)
    with pytest.raises(RequestError, match="training_batches"):
        build(one).fit(data, shuffle=False, verbose=0, callbacks=[tfgpu.BackupAndRestore(tmp_path)])


@posix
def test_a_directory_that_another_process_writes_to_is_refused(tmp_path, one):
    with writer(tmp_path) as other:
        with pytest.raises(RequestError, match=rf"in use by .*{other.pid}.*another directory"):
            train(tmp_path, one)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_training_left_by_an_exception_is_continued_in_the_same_process(tmp_path, one):
    """As in a notebook: nobody has closed the first callback."""
    batches = training_batches(EXAMPLES, batch_size=BATCH, seed=3)
    models = [build(one), build(one)]
    backups = [tfgpu.BackupAndRestore(tmp_path, save_freq=1) for _ in models]
    for model, backup, kill in zip(models, backups, ([KillAfter(2)], []), strict=True):
        with contextlib.suppress(Killed):
            model.fit(
                batches,
                steps_per_epoch=batches.steps_per_epoch,
                epochs=1,
                shuffle=False,
                verbose=0,
                callbacks=[backup, *kill],
            )
    assert backups[1].resumed_from > 0
