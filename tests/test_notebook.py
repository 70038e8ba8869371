"""docs/notebook.ipynb: it is committed without outputs, and it runs from top to bottom."""

import ast
import contextlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def cells(kind):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_holds_no_outputs():
    # They would be those of one machine and version, and each run would change them.
    for cell in cells("code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        assert cell["metadata"] == {}


def test_its_python_is_read():
    assert len(cells("code")) > 5
    for cell in cells("code"):
        lines = "".join(cell["source"]).splitlines()
        ast.parse("\n".join(line for line in lines if not line.startswith(("%", "!"))))


def test_its_links_lead_somewhere():
    found = [
        target for cell in cells("markdown") for target in LINK.findall("".join(cell["source"]))
    ]
    assert found
    for target in found:
        assert (NOTEBOOK.parent / target).is_file(), target


LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


def shown(text):
    """What Jupyter shows of a stream.

    A carriage return goes back to the beginning of the line and a backspace by one character, both
    without erasing anything; colours take no room, and other escape sequences are dropped.
    """
    lines = []
    for line in re.sub(r"\x1b\[[^@-~]*[@-~]", "", text).split("\n"):
        row, at = [], 0
        for character in line:
            if character == "\r":
                at = 0
            elif character == "\b":
                at = max(0, at - 1)
            else:
                row[at : at + 1] = [character]
                at += 1
        lines.append("".join(row).rstrip())
    return lines


def test_what_jupyter_shows():
    assert shown("one\rtw\r\n\x1b[1mthree\x1b[0m\b\bx") == ["twe", "thrxe"]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """That of the kernel: as a user's, and with a folder for temporary files of its own."""
    for name in list(os.environ):
        if name.startswith(("TF_", "KERAS", "GRPC_VERBOSITY", "CUDA_DEVICE_ORDER", "TENSORBOARD")):
            monkeypatch.delenv(name)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))  # TensorBoard says there where it runs.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield tmp_path
    for file in (tmp_path / "tmp" / ".tensorboard-info").glob("pid-*.info"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(file.read_text())["pid"], signal.SIGTERM)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(environment):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, 4)
    # TensorBoard ends with the kernel, so it is asked from within.
    notebook.cells.append(nbformat.v4.new_code_cell(ASK))
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3")
    client.execute(cwd=str(environment))  # Raises what a cell raises.

    def output(beginning):
        (cell,) = [cell for cell in notebook.cells if beginning in cell.source]
        return cell.outputs

    def text(beginning):
        return "".join(each["text"] for each in output(beginning) if "text" in each)

    # Live progress: drawn several times an epoch, and at the end one clean line for each.
    fit = text("model.fit(")
    assert fit.count("\r") > 3 * 8
    lines = [line for line in shown(fit) if line]
    assert lines[::2] == [f"Epoch {epoch}/8" for epoch in range(1, 9)]
    for line in lines[1::2]:
        number = r"\d\.\d{4}(e-\d+)?"
        metrics = " - ".join(f"{name}: {number}" for name in METRICS)
        assert re.fullmatch(rf"21/21 ━+ \S+ \S+/step - {metrics}", line)
    (accuracy,) = [each["data"]["text/plain"] for each in output("model.evaluate(")]
    assert float(accuracy.strip("'").split()[-1]) > 0.9

    (frame,) = [each["data"]["text/html"] for each in output("%tensorboard --logdir")]
    port = re.search(r"const port = (\d+);", frame)[1]
    (answer,) = [each["data"]["text/plain"] for each in output("data/runs")]
    assert ast.literal_eval(answer) == [int(port), ["train", "validation"]]

    # Behind `!` no bar, which Jupyter could not draw.
    said = text("-m tfgpu.train")
    assert "\x1b" not in said
    epochs = re.findall(r"^epoch (\d)/8  loss .*accuracy ", said, re.MULTILINE)
    assert epochs == [str(epoch) for epoch in range(1, 9)]
    assert "test accuracy" in said and (environment / "runs/notebook/report.html").is_file()


ASK = """
import json, time, urllib.request
from tensorboard import manager

(board,) = manager.get_all()
for _ in range(120):  # It reads the runs one after another.
    with urllib.request.urlopen(f"http://localhost:{board.port}/data/runs") as answer:
        runs = sorted(json.load(answer))
    if len(runs) > 1:
        break
    time.sleep(0.5)
[board.port, runs]
"""
METRICS = ("accuracy", "loss", "val_accuracy", "val_loss")
