"""What happens to a file while no program looks: each a function that changes the file at a path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

FLIPPED = 64  # bytes


def flip(path: Path) -> None:
    """Turn all bits of 64 bytes in the middle."""
    data = bytearray(path.read_bytes())
    start = max(0, len(data) // 2 - FLIPPED // 2)
    data[start : start + FLIPPED] = bytes(byte ^ 0xFF for byte in data[start : start + FLIPPED])
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Leave the first half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def garble(path: Path) -> None:
    """Put a line that is no JSON after the first."""
    _insert(path, b'{"step": 1, "loss" ]garbage[\n')


def misencode(path: Path) -> None:
    """Put a line that is not UTF-8 after the first."""
    _insert(path, b'{"prompt": "\xff\xfe\xc3"}\n')


def _insert(path: Path, line: bytes) -> None:
    data = path.read_bytes()
    end = data.find(b"\n") + 1
    path.write_bytes(data[:end] + line + data[end:])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


NAMES: dict[Callable[[Path], None], str] = {
    flip: "64 bytes flipped",
    cut: "cut in half",
    empty: "empty",
    remove: "gone",
    garble: "a line of garbage",
    misencode: "a line of bad UTF-8",
    replace_by_folder: "a folder in its place",
}
