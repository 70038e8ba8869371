"""TensorBoard's event files, which go back with the run when it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras' callback, whose event files a backup remembers.

    A run that is resumed has its files cut back to where they were at the backup, so that no
    step is in them twice and none is missing.

    Args:
        log_dir: Where the event files go.
        **arguments: Those of `keras.callbacks.TensorBoard`.
    """

    def __init__(self, log_dir: str | Path, **arguments: Any):
        super().__init__(log_dir=str(log_dir), **arguments)
        self._directory = Path(log_dir)

    def get_state(self) -> dict[str, Any]:
        """Returns the size of each event file, in bytes."""
        for writer in self._writers.values():
            writer.flush()
        return {
            "files": {
                file.relative_to(self._directory).as_posix(): file.stat().st_size
                for file in self._event_files()
            }
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Cuts the event files back to those sizes and removes the ones that were not there."""
        # `on_train_begin` has opened a file already; the next event opens another.
        self._close_writers()
        self._writers: dict[str, Any] = {}
        for file in self._event_files():
            size = state["files"].get(file.relative_to(self._directory).as_posix(), 0)
            if size == 0:
                file.unlink()
            elif file.stat().st_size > size:
                with open(file, "r+b") as opened:
                    opened.truncate(size)

    def _event_files(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return sorted(self._directory.rglob("events.out.tfevents.*"))
