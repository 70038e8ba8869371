"""The probe: which combinations it names, how it tells works from fails from hangs."""

import dataclasses

import pytest

from tfgpu.doctor import probe
from tfgpu.doctor.probe import Cell, Outcome

CELL = Cell(
    library="tfgpu",
    strategy="mirrored",
    precision="mixed_float16",
    jit_compile=True,
    steps_per_execution=4,
    gradient_accumulation_steps=2,
)


def test_all_are_every_combination_with_each_library():
    cells = probe.cells("all")
    assert len(cells) == len(set(cells)) == 3 * 3 * 2 * 2 * 2 * 2


def test_words_narrow_the_axes_they_belong_to():
    cells = probe.cells("mirrored,one_device,no_xla,float32")
    assert {cell.strategy for cell in cells} == {"mirrored", "one_device"}
    assert {(cell.precision, cell.jit_compile) for cell in cells} == {("float32", False)}
    assert len(cells) == 2 * 2 * 2 * 2


@pytest.mark.parametrize(
    "cell",
    [
        dataclasses.replace(
            CELL, strategy="one_device", jit_compile=False, gradient_accumulation_steps=1
        ),
        pytest.param(CELL, marks=pytest.mark.slow),
    ],
    ids=["one", "the hardest"],
)
def test_a_combination_trains(cell):
    outcome = probe.run(cell, limit=240)
    assert outcome.status == "works", outcome.error
    assert 0 < outcome.loss < 10


def test_one_that_does_not_end_hangs():
    outcome = probe.run(CELL, limit=0.2)
    assert outcome.status == "hangs"
    assert "0.2 s" in outcome.error


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import os; os.abort()", "SIGABRT"),
        ("import sys; sys.exit('no such device')", "no such device"),
    ],
)
def test_a_process_that_ends_early_fails_with_its_last_word(monkeypatch, program, error):
    real = probe.subprocess.Popen

    def instead(command, **arguments):
        return real([command[0], "-c", program], **arguments)

    monkeypatch.setattr(probe.subprocess, "Popen", instead)
    outcome = probe.run(CELL)
    assert outcome.status == "fails"
    assert error in outcome.error


def test_the_table_has_keras_and_tfgpu_side_by_side():
    cells = probe.cells("mirrored,float32,1_step,no_accumulation")
    broken = Outcome(status="fails", seconds=1, error="RuntimeError: one device only")
    works = Outcome(status="works", seconds=1, loss=0.5)
    results = [
        (cell, broken if cell.jit_compile and cell.library == "keras" else works) for cell in cells
    ]
    lines = probe.table(results).splitlines()
    assert lines[1].split()[-2:] == ["keras", "tfgpu"]
    rows = {line.split()[1]: line.split()[-2:] for line in lines[2:4]}
    assert rows == {"off": ["works", "works"], "on": ["fails", "works"]}
    assert lines[4].split(maxsplit=2)[2] == "keras: RuntimeError: one device only"
