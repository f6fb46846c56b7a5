"""Text files: written whole or not at all, and read with one clear line for an error."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import BadInput, DiskFull, RepriseError
from ..core.parsing import parse_json


def write_whole(path: Path, data: bytes | str) -> None:
    """Replace a file in one step: it has either the old content or all of the new one.

    Raises BadInput if the path cannot be written, RepriseError if the disk is full.
    """
    if isinstance(data, str):
        data = data.encode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not named by `path`: its name may be as long as the file system allows. And named before it is made,
        # or Ctrl-C in between would leave it.
        part = path.parent / f".reprise-{secrets.token_hex(4)}.part"
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def is_part(name: str) -> bool:
    """Whether a file of this name is one that `write_whole` had not finished when its process was killed."""
    return re.fullmatch(r"\.reprise-[a-z0-9_]{8}\.part", name) is not None


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, which is created if it is missing. Raises as `write_whole`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def read_text(path: Path, what: str, verb: str, remedy: str = "") -> str:
    """The text of a user's file, in UTF-8 with or without a byte order mark. Raises BadInput.

    In messages `what` names the file, `verb` is "is" or "are", and `remedy` is the end if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"cannot read the {what} {path}: {error.strerror}{remedy}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"the {what} {path} {verb} not UTF-8 text (byte {error.start})") from error


def read_lines(
    path: Path, remedy: str = "delete this line", needs: Mapping[str, type] | None = None
) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, without an incomplete last one; none if there is no file.

    Raises BadInput with the number of the first line that is no JSON object, or lacks a key of `needs` or has
    a value of another type there. Its message ends in `remedy`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}, line {number}: {_not_json(error)}; {remedy}") from error
        if lacking := _lacking(row, needs or {}):
            raise BadInput(f"{path}, line {number}: expected {lacking}; {remedy}")
        rows.append(row)
    return rows


def _lacking(row: Any, needs: Mapping[str, type]) -> str | None:
    """What a parsed JSON object lacks of the keys that are needed, in words."""
    if not isinstance(row, dict):
        return "a JSON object"
    for name, kind in needs.items():
        if not isinstance(row.get(name), (int, float) if kind is float else kind):
            return f"{name!r} with {_KINDS[kind]}"
    return None


def _not_json(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text (byte {error.start})"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at character {error.pos + 1})"
    return f"not JSON ({error})"


_KINDS = {int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "an object"}


def read_json(path: Path, remedy: str, needs: Mapping[str, type] | None = None) -> Any:
    """A JSON file; with `needs` an object that has these keys, as in `read_lines`. Raises BadInput, whose
    message ends in `remedy`; a missing file is FileNotFoundError."""
    try:
        found = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; {remedy}") from error
    except ValueError as error:
        raise BadInput(f"{path}: {_not_json(error)}; {remedy}") from error
    if needs is not None and (lacking := _lacking(found, needs)):
        raise BadInput(f"{path}: expected {lacking}; {remedy}")
    return found


def is_inside(folder: Path, path: Path, links: bool = False) -> bool:
    """Whether a path that stood in a file stays in `folder`. With `links` a link in it may lead elsewhere, as
    those in Hugging Face's cache do."""
    if "\0" in str(path):  # which the system calls no path at all
        return False
    places = [os.path.abspath(one) if links else os.path.realpath(one) for one in (path, folder)]
    return places[0].startswith(os.path.join(places[1], ""))


def prepare_folder(path: Path) -> Path:
    """Make the folder `path` and check that it can be written to, before any work. Raises BadInput."""
    try:
        if path.exists() and not path.is_dir():
            raise BadInput(f"expected a folder to write to, got the file {path}; give another --out")
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error
    except ValueError as error:  # a zero byte
        raise BadInput(f"{str(path)!r} is no name of a folder: {error}; give another --out") from error
    return path


def slug(text: str, salt: str = "", length: int = 40) -> str:
    """A folder name for a text: its words and 16 hex digits of a hash of it and of `salt`.

    The words are cut to `length` characters; the hash keeps texts apart that begin alike. Of 10,000 texts two
    have the same name with a probability of 3e-12.
    """
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-")
    parts = json.dumps([text, salt]).encode()
    digest = hashlib.sha256(parts).hexdigest()[:16]
    return f"{words}-{digest}" if words else digest


def apply_umask(path: Path) -> None:
    """Give a file the mode that `open` gives: safetensors makes files that only the owner can read."""
    os.chmod(path, 0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that the disk, a quota or a limit has no more room.

    safetensors and torch only say so in words, and torch says "enforce fail" for whatever it cannot write.
    """
    while error is not None:
        if (
            isinstance(error, DiskFull)
            or getattr(error, "errno", None) in _NO_ROOM
            or _NO_ROOM_WORDS.search(str(error))
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def free_megabytes(path: Path) -> int | None:
    """Free space on the disk of `path`, which need not exist; None where nothing says it."""
    for place in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(place).free // 10**6
        except OSError:
            continue
    return None


# EFBIG is a limit of the file system or of `ulimit -f`.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM_WORDS = re.compile(
    rf"\(os error ({'|'.join(map(str, _NO_ROOM))})\)|No space left|PytorchStreamWriter|unexpected pos \d"
)


def cannot_write(path: Path, error: OSError) -> RepriseError:
    if error.errno in _NO_ROOM:
        return DiskFull(
            f"the disk is full: {path} was not written; finished prompts are kept: free some space and run "
            "the same command again"
        )
    return BadInput(f"cannot write {path}: {error.strerror or error}; give another --out")
