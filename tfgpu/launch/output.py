"""What workers say, each line with the number of its worker before it."""

from __future__ import annotations

import re
from typing import BinaryIO

_LONGEST = 1 << 16
"""Bytes of a line that are held until its end comes."""


class PrefixedLines:
    """Writes a stream line by line, with a prefix, so that those of several never mix in a line.

    A carriage return ends a line too: the next text would be written over the prefix.
    """

    def __init__(self, prefix: str, out: BinaryIO):
        self._prefix = prefix.encode()
        self._out = out
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the stream.

        Raises:
            BrokenPipeError: Nobody reads any more.
        """
        *lines, self._rest = re.split(rb"\r?\n|\r(?!\n|$)", self._rest + data)
        if len(self._rest) > _LONGEST:
            lines, self._rest = [*lines, self._rest], b""
        if lines:
            self._out.write(b"".join(self._prefix + line + b"\n" for line in lines))
            self._out.flush()

    def close(self) -> None:
        """Writes what came without an end of line."""
        if self._rest:
            self.feed(b"\n")


def pair(index: int, stdout: BinaryIO, stderr: BinaryIO) -> tuple[PrefixedLines, PrefixedLines]:
    """Returns the two streams of a worker."""
    return PrefixedLines(f"[{index}] ", stdout), PrefixedLines(f"[{index}] ", stderr)
