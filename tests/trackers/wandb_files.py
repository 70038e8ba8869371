"""W&B's files, read as W&B reads them: the log format of LevelDB, of protocol buffers."""

import json

_BLOCK = 32768


def records(path):
    """Yields the records of a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if _BLOCK - at % _BLOCK < 7:
            at += _BLOCK - at % _BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        chunk, at = data[at + 7 : at + 7 + size], at + 7 + size
        whole = chunk if kind in (1, 2) else whole + chunk  # Whole, or the first part of one.
        if kind in (1, 4):  # Whole, or the last part.
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record


def plain(items):
    return {each.key or ".".join(each.nested_key): json.loads(each.value_json) for each in items}


class Offline:
    """What the files of a run say.

    Attributes:
        run: How it was begun.
        history: What was logged, in order.
        summary: The last value of each figure.
        artifacts: The files of each, by its name.
        exit: The exit code; None where it is not closed.
    """

    def __init__(self, path):
        self.run, self.history, self.summary, self.artifacts, self.exit = None, [], {}, {}, None
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run" and self.run is None:
                self.run = record.run
            elif kind == "history":
                self.history.append(plain(record.history.item))
            elif kind == "summary":
                self.summary |= plain(record.summary.update)
            elif kind == "artifact":
                contents = record.artifact.manifest.contents
                self.artifacts[record.artifact.name] = [entry.path for entry in contents]
            elif kind == "exit":
                self.exit = record.exit.exit_code

    @property
    def config(self):
        return plain(self.run.config.update)
