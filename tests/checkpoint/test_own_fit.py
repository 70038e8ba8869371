"""What other callbacks, and the arguments of `fit`, do to a training that is continued."""

import errno
import math

import keras
import pytest
import tensorflow as tf
from backed_up import (
    BATCH,
    EXAMPLES,
    IMAGES,
    LABELS,
    KillAfter,
    Killed,
    build,
    resumed,
    same,
    train,
)

import tfgpu
from tfgpu.checkpoint import store
from tfgpu.data.inputs import training_batches
from tfgpu.errors import RequestError, WorkError


def test_a_rate_that_hangs_on_the_one_before_is_set_once_an_epoch(tmp_path, one):
    def less():
        return keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.8 * rate)

    whole, _, _ = train(tmp_path / "whole", one, more=[less()])
    with pytest.raises(Killed):
        train(tmp_path / "cut", one, more=[less(), KillAfter(8)])
    cut, _, backup = train(tmp_path / "cut", one, more=[less()])
    assert backup.resumed_from % 7  # In the middle of an epoch.
    assert same(whole, cut)


@pytest.mark.slow
def test_files_of_every_few_batches_are_those_of_a_whole_training(tmp_path, one):
    def saves(folder):
        return keras.callbacks.ModelCheckpoint(
            folder / "{epoch}-{batch}.weights.h5", save_freq=4, save_weights_only=True
        )

    for folder in ("whole", "cut"):
        (tmp_path / f"files of {folder}").mkdir()
    train(tmp_path / "whole", one, more=[saves(tmp_path / "files of whole")], together=1)
    with pytest.raises(Killed):
        train(
            tmp_path / "cut",
            one,
            more=[saves(tmp_path / "files of cut"), KillAfter(10)],
            together=1,
        )
    train(tmp_path / "cut", one, more=[saves(tmp_path / "files of cut")], together=1)
    whole, cut = (
        {file.name for file in (tmp_path / f"files of {folder}").iterdir()}
        for folder in ("whole", "cut")
    )
    assert cut == whole


@pytest.mark.parametrize("executions", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_training_that_begins_with_a_later_epoch_keeps_its_place_in_the_data(
    tmp_path, one, executions
):
    fit = {"initial_epoch": 1}
    whole, logs, _ = train(tmp_path / "whole", one, fit=fit)
    cut, cut_logs, _ = resumed(tmp_path / "cut", one, executions, fit=fit)
    assert same(whole, cut) and logs == cut_logs


@pytest.mark.slow
def test_data_that_begin_with_a_later_step_go_on_where_they_were(tmp_path, one):
    def given():
        return {"batches": training_batches(EXAMPLES, batch_size=BATCH, seed=3, start_step=9)}

    whole, _, _ = train(tmp_path / "whole", one, **given())
    with pytest.raises(Killed):
        train(tmp_path / "cut", one, more=[KillAfter(5)], **given())
    cut, _, backup = train(tmp_path / "cut", one, **given())
    assert backup.resumed_from
    assert same(whole, cut)


def test_a_callback_with_state_that_stands_behind_is_refused(tmp_path, one):
    batches = training_batches(EXAMPLES, batch_size=BATCH, seed=3)
    callbacks = [tfgpu.BackupAndRestore(tmp_path / "backup"), keras.callbacks.EarlyStopping()]
    with pytest.raises(RequestError, match="before EarlyStopping.*put it last"):
        build(one).fit(batches, steps_per_epoch=7, shuffle=False, verbose=0, callbacks=callbacks)
    assert not (tmp_path / "backup").exists()


def test_the_fit_after_one_that_was_continued_and_left_has_all_its_epochs(tmp_path):
    default = tf.distribute.get_strategy()
    model = build(default)
    for _ in range(2):
        with pytest.raises(Killed):
            train(tmp_path, default, model=model, more=[KillAfter(6)])
    history = model.fit(IMAGES.astype("float32"), LABELS, epochs=2, verbose=0)
    assert history.epoch == [0, 1]


def test_callbacks_are_seen_through_a_fit_that_takes_anything(tmp_path, one, monkeypatch):
    real = keras.Model.fit
    monkeypatch.setattr(keras.Model, "fit", lambda self, *args, **more: real(self, *args, **more))
    train(tmp_path, one)
    newest = max(tmp_path.glob("step-*/manifest.json")).read_text()
    assert '"EarlyStopping": {"counters":' in newest


def test_a_loss_that_is_no_number_is_not_the_best(tmp_path, one):
    class NaN(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                logs["val_loss"] = math.nan

    train(tmp_path, one, more=[NaN()], patience=9)
    manifests = [path.read_text() for path in tmp_path.glob("step-*/manifest.json")]
    assert any('"best": true' in text for text in manifests)


def test_a_disk_that_is_full_before_the_first_step_ends_the_training_there(
    tmp_path, one, monkeypatch
):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_all", full)
    with pytest.raises(WorkError, match="No space left on device while writing .*first backup"):
        train(tmp_path, one)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"of": {3: 1}}, r"Notes\.get_state\(\)\['of'\] is a dictionary with the key 3"),
        ([{1, 2}], r"Notes\.get_state\(\)\[0\] is of the type set"),
    ],
)
def test_a_state_that_would_come_back_as_another_is_named(tmp_path, one, kept, said):
    class Notes(keras.callbacks.Callback):
        def get_state(self):
            return kept

        def set_state(self, state):
            pass

    with pytest.raises(RequestError, match=said):
        train(tmp_path, one, more=[Notes()])
