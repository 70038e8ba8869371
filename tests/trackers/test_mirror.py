"""A tracker gets what it lacks, each thing once, whatever fails in between."""

import pytest
from recorded import Kept, add_epoch, begun

from tfgpu.trackers.mirror import Mirror, in_short


@pytest.fixture
def heard():
    return {"say": [], "warn": []}


@pytest.fixture
def mirror(tmp_path, heard):
    tracker = Kept()
    record = begun(tmp_path / "run", epochs=1)
    made = Mirror(record, tracker, say=heard["say"].append, warn=heard["warn"].append)
    made.tracker, made.record = tracker, record
    return made


def test_each_record_is_sent_once(mirror, heard):
    assert mirror.update() and mirror.update()
    add_epoch(mirror.record, 2)
    assert mirror.update()
    assert mirror.tracker.records == mirror.record.records()
    assert mirror.tracker.opened == 1 and heard == {"say": ["kept: in memory"], "warn": []}


def test_another_process_sends_the_rest_alone(mirror, heard):
    mirror.update()
    add_epoch(mirror.record, 2)
    again = Mirror(
        mirror.record, mirror.tracker, say=heard["say"].append, warn=heard["warn"].append
    )
    assert again.end("finished")
    assert mirror.tracker.records == mirror.record.records()
    assert mirror.tracker.ended == ["finished"]


def test_what_a_tracker_missed_is_sent_when_it_is_back_and_warned_of_once(mirror, heard):
    mirror.update()
    mirror.tracker.fails = ConnectionError("refused by\nhttp://me:secret@host:5000")
    for epoch in (2, 3):
        add_epoch(mirror.record, epoch)
        assert not mirror.update()
    [warning] = heard["warn"]
    assert warning.startswith("kept: refused by http://host:5000; the training goes on")
    mirror.tracker.fails = None
    assert mirror.update()
    assert mirror.tracker.records == mirror.record.records()
    assert heard["say"][1:] == ["kept: what was missing has been sent"] and len(heard["warn"]) == 1


def test_a_failure_in_the_middle_sends_nothing_twice(mirror):
    log = mirror.tracker.log

    def half(records):
        log(records[:1])
        raise OSError("gone")

    mirror.tracker.log = half
    assert not mirror.update()
    mirror.tracker.log = log
    assert mirror.update()
    assert mirror.tracker.records == mirror.record.records()


def test_a_tracker_that_cannot_end_is_not_complete(mirror):
    mirror.update()
    mirror.tracker.fails = ValueError("no")
    assert not mirror.end("finished")


def test_what_libraries_say_is_shortened_and_rid_of_passwords():
    assert in_short(ValueError("a\n  b https://u:p@h/x")) == "a b https://h/x"
    assert in_short(KeyError()) == "KeyError"
    assert len(in_short(ValueError("x" * 5000))) == 300
