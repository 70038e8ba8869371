"""Lines of several workers stay whole."""

import io

import pytest

from tfgpu.launch.output import PrefixedLines


def written(*pieces):
    out = io.BytesIO()
    lines = PrefixedLines("[1] ", out)
    for piece in pieces:
        lines.feed(piece)
    before = out.getvalue()
    lines.close()
    return before, out.getvalue()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"a\nb\n"], b"[1] a\n[1] b\n"),
        ([b"a", b"b\nc", b"\n"], b"[1] ab\n[1] c\n"),
        ([b"\n"], b"[1] \n"),
        ([b"10%\r20%\r", b"done\n"], b"[1] 10%\n[1] 20%\n[1] done\n"),
        ([b"a\r", b"\nb\r\n"], b"[1] a\n[1] b\n"),
        ([b"\xc3", b"\xa9\n"], "[1] é\n".encode()),
    ],
)
def test_each_line_has_the_prefix(pieces, expected):
    assert written(*pieces)[1] == expected


def test_a_line_waits_for_its_end():
    assert written(b"half") == (b"", b"[1] half\n")


def test_a_line_without_an_end_is_not_held_for_ever():
    before, _ = written(b"x" * 100_000)
    assert len(before) > 65_536
