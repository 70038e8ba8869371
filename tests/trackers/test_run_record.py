"""What a run directory keeps for trackers."""

import pytest
from PIL import Image
from recorded import STEPS, add_epoch, add_pictures, begun, end

from tfgpu.trackers.run_record import RunRecord


def epochs(record):
    return [each.values["epoch"] for each in record.records() if each.kind == "epoch"]


def test_an_epoch_is_recorded_once_without_what_is_not_known(tmp_path):
    record = begun(tmp_path / "run", epochs=2)
    record.complete()
    assert epochs(record) == [1, 2]
    first = next(each for each in record.records() if each.kind == "epoch")
    assert first.step == STEPS and first.values == {"epoch": 1, "loss": 1.0, "seconds": 0.5}


def test_the_order_of_records_grows(tmp_path):
    record = begun(tmp_path / "run", epochs=2)
    add_pictures(record, 2 * STEPS)
    orders = [each.order for each in record.records()]
    assert orders == sorted(orders)
    assert orders[0] < orders[1]  # The hardware and the epoch, of one step.


def test_what_is_trained_again_is_recorded_again(tmp_path):
    record = begun(tmp_path / "run", epochs=3)
    lines = (record.run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (record.run_dir / "metrics.jsonl").write_text(lines[0])  # As a continued run truncates it.
    record.rewind(STEPS + 3)
    assert epochs(record) == [1]
    add_epoch(record, 2, loss=9.0)
    assert [each.values["loss"] for each in record.records() if each.kind == "epoch"] == [1, 9]


def test_a_run_that_had_no_tracker_is_recorded_from_its_metrics(tmp_path):
    record = begun(tmp_path / "run", epochs=2)
    (record.path / "records.jsonl").unlink()
    again = RunRecord(record.run_dir)
    again.begin()
    again.complete()
    assert epochs(again) == [1, 2]


def test_a_line_that_is_being_written_is_left_for_later(tmp_path):
    record = begun(tmp_path / "run", epochs=2)
    with open(record.path / "records.jsonl", "a") as file:
        file.write('{"kind": "epoch", "st')
    assert epochs(record) == [1, 2]


def test_a_line_that_was_cut_off_does_not_swallow_the_next(tmp_path):
    record = begun(tmp_path / "run", epochs=1)
    with open(record.path / "records.jsonl", "a") as file:
        file.write('{"kind": "epoch", "st')  # The machine went down.
    record.rewind(STEPS)
    add_epoch(record, 2)
    assert epochs(record) == [1, 2]


@pytest.mark.parametrize(
    "line", ['{"a": 1}', "[1]", "nonsense", '{"kind": "x", "step": 1, "time": 2}']
)
def test_a_line_of_something_else_hides_no_other(tmp_path, line):
    record = begun(tmp_path / "run", epochs=2)
    path = record.path / "records.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, line, *rest]) + "\n")
    again = RunRecord(record.run_dir)
    again.begin()
    assert epochs(again) == [1, 2]


def test_metrics_of_something_else_are_left_out(tmp_path):
    record = begun(tmp_path / "run", epochs=1)
    with open(record.run_dir / "metrics.jsonl", "a") as file:
        file.write('[1]\n{"epoch": 7}\n')
    record.complete()
    assert epochs(record) == [1]


def test_pictures_are_files(tmp_path):
    record = begun(tmp_path / "run")
    add_pictures(record, 20)
    image, text = record.records()
    with Image.open(record.picture(image)) as opened:
        assert opened.size == (6, 4)
    assert record.picture(text).read_text() == "| a |"
    assert text.tag == "examples/words" and "/" not in text.file


def test_a_run_keeps_its_id(tmp_path):
    record = begun(tmp_path / "run")
    again = RunRecord(tmp_path / "run")
    again.begin()
    assert again.identity == record.identity and record.identity["name"] == "run"
    assert begun(tmp_path / "other").identity["id"] != record.identity["id"]


def test_a_trial_knows_its_search(tmp_path):
    search = begun(tmp_path / "search")
    (tmp_path / "search" / "search.json").write_text("{}")
    trial = begun(tmp_path / "search" / "trials" / "0003")
    assert trial.identity["name"] == "search/0003"
    assert trial.identity["group"] == {"id": search.identity["id"], "name": "search"}
    assert begun(tmp_path / "runs" / "of" / "others").identity["group"] is None


def test_the_result_gives_figures_that_no_epoch_has(tmp_path):
    record = begun(tmp_path / "run")
    assert record.figures == {} and record.model is None
    end(record, status="failed")
    assert record.model is None
    end(record)
    assert record.figures == {"test_accuracy": 0.9, "energy_joules": 7.0}
    assert record.model == tmp_path / "run" / "model.keras"
    assert record.settings == {
        "model": "lenet",
        "epochs": 3,
        "image_size": [32, 32],
        "remat": False,
    }


def test_a_long_run_reads_what_is_new_alone(tmp_path):
    record = begun(tmp_path / "run", epochs=3)
    at = record._read
    add_epoch(record, 4)
    assert at > 0 and record._read == (record.run_dir / "metrics.jsonl").stat().st_size
    assert epochs(record) == [1, 2, 3, 4]
