"""Checksums of model folders and checkpoints: stored beside the files, compared before the files are loaded.

`checksums.xxh128` has a line "HASH  NAME" for each file of its folder and of the folders in it. The program
xxhsum writes and checks the same lines (`xxhsum -c checksums.xxh128`). The hash is XXH3 with 128 bits. It
finds what disks, memory and copying have altered; it does not protect against someone who alters files on
purpose. A folder without checksums, such as one from a hub, is loaded unchecked.

Single safetensors files carry their checksum in themselves (`save_tensors`, `load_tensors`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import CheckpointError, first_line
from .files import write_whole

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUMS = "checksums.xxh128"
NOT_LISTED = (CHECKSUMS, "README.md")  # a model card is for people, who may change it
AGAIN = f"copy, download or train it again, or delete {CHECKSUMS} if you changed it yourself"
log = logging.getLogger(__name__)
_LINE = re.compile(r"([0-9a-f]{32})  (.+)")
_BLOCK = 2**22  # bytes that are read at a time
_KEY, _EMPTY = b'"xxh128":"', b"0" * 32  # in a safetensors file's header


def file_checksum(path: Path, durable: bool = False) -> str:
    """XXH3 of a file, 32 hex digits. With `durable` the file is also forced to the disk."""
    from xxhash import xxh3_128

    digest, block = xxh3_128(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        if durable and os.name != "nt":  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def write_checksums(folder: Path) -> None:
    """Store the checksums of all files in `folder`, once they are on the disk. Raises OSError, and as
    `write_whole`."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in NOT_LISTED
    )
    lines = [f"{file_checksum(folder / name, durable=True)}  {name}\n" for name in names]
    write_whole(folder / CHECKSUMS, "".join(lines))


def check_folder(folder: Path, remedy: str = AGAIN, deep: bool = True) -> None:
    """Compare the files of `folder` with its checksums, or with those of the folder that holds it.

    Without `deep` the folders in it are left to those who load them. Nothing is checked where there are no
    checksums. Raises CheckpointError for a file that is missing, altered or unreadable; the message ends in
    `remedy`.
    """
    for name, expected in _checksums_of(folder, remedy).items():
        if (deep or "/" not in name) and _can_check():
            _check_file(folder / name, expected, remedy)


def check_file(path: Path, remedy: str = AGAIN) -> None:
    """Compare one file with the checksums beside it, if they name it. Raises as `check_folder`."""
    expected = _checksums_of(path.parent, remedy).get(path.name)
    if expected is not None and _can_check():
        _check_file(path, expected, remedy)


def move_unlisted(old: Path, new: Path) -> None:
    """Move the files of `old` that its checksums do not name to `new`, unless that has them: they are the
    user's own. Raises OSError, and as `check_folder`."""
    listed = {*_checksums_of(old, AGAIN), CHECKSUMS}
    for path in sorted(old.rglob("*")):
        name = path.relative_to(old)
        if path.is_file() and name.as_posix() not in listed and not (new / name).exists():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, new / name)


@cache
def _can_check() -> bool:
    """Whether xxhash is installed. Files are loaded unchecked without it, and that is said once: a node pack
    that was updated with `git pull` alone still draws."""
    if find_spec("xxhash"):
        return True
    log.warning("Reprise loads its weights unchecked: xxhash is not installed; pip install xxhash")
    return False


def _check_file(path: Path, expected: str, remedy: str) -> None:
    try:
        found = file_checksum(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; {remedy}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    if found != expected:
        raise CheckpointError(
            f"{path} is damaged (expected the checksum {expected[:12]}… that {CHECKSUMS} gives, got "
            f"{found[:12]}…); {remedy}"
        )


def _checksums_of(folder: Path, remedy: str) -> dict[str, str]:
    """The checksums of a folder's files by their names in it, from the folder itself or the one above."""
    for place, prefix in ((folder, ""), (folder.parent, f"{folder.name}/")):
        path = place / CHECKSUMS
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {path}: {first_line(error)}; {remedy}") from error
        found = {}
        for number, line in enumerate(text.splitlines(), start=1):
            match = _LINE.fullmatch(line)
            if match is None:
                raise CheckpointError(f"{path}, line {number}: expected a checksum and a name; {remedy}")
            if match[2].startswith(prefix):
                found[match[2].removeprefix(prefix)] = match[1]
        return found
    return {}


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that holds its own checksum, whole or not at all. Raises as `write_whole`."""
    from safetensors.torch import save
    from xxhash import xxh3_128_hexdigest

    data = bytearray(save(dict(tensors), metadata={"xxh128": _EMPTY.decode()}))
    place = data.index(_KEY) + len(_KEY)
    data[place : place + len(_EMPTY)] = xxh3_128_hexdigest(data).encode()
    write_whole(path, bytes(data))


def check_tensors(path: Path, remedy: str) -> None:
    """Compare a file of `save_tensors` with the checksum in it. A file without one is only read as
    safetensors by whoever loads it. Raises CheckpointError, whose message ends in `remedy`."""
    _checked_bytes(path, remedy)


def load_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a file of `save_tensors`, on the CPU. Raises as `check_tensors`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(_checked_bytes(path, remedy))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({first_line(error)}); {remedy}") from error


def _checked_bytes(path: Path, remedy: str) -> bytes:
    try:
        data = bytearray(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    header = min(8 + int.from_bytes(data[:8], "little"), len(data))
    place = data.find(_KEY, 0, header) + len(_KEY)
    if place < len(_KEY) or not _can_check():
        return bytes(data)
    from xxhash import xxh3_128_hexdigest

    expected = bytes(data[place : place + len(_EMPTY)])
    data[place : place + len(_EMPTY)] = _EMPTY
    if xxh3_128_hexdigest(data).encode() != expected:
        raise CheckpointError(f"{path} is damaged (its checksum does not fit its content); {remedy}")
    return bytes(data)
