"""Run folders: files written whole, and `record.json`, from which a picture can be made again.

A prompt's folder holds `candidates/NN-SEED.png`, `previews/NN-SEED.png` of those that were pruned (the
last preview that the judge saw), `best.png` and `record.json`. The record is written last, so a folder
with a record is finished; one without is done again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from .config import one_line
from .errors import BadInput, RepriseError
from .types import Outcome

if TYPE_CHECKING:
    from torch import Tensor

RECORD = "record.json"
BEST = "best.png"
FOLDERS = ("candidates", "previews")  # of pictures that a record names
LIBRARIES = ("torch", "diffusers", "transformers", "numpy")  # what decides the pixels


class _Part(BaseModel):
    # Records of newer versions may carry more; what is there must be right.
    model_config = ConfigDict(extra="ignore")


class RewriteRecord(_Part):
    reason: str
    prompt: str
    rewriter: str
    fallback: str | None = None


class CandidateRecord(_Part):
    """`image` is relative to the record's folder, with "/"; None where the candidate was pruned.
    `preview` is then the last x0 preview."""

    index: int
    seed: int
    prompt: str
    scores: dict[str, FiniteFloat] = {}
    score: FiniteFloat | None = None
    pruned_at: int | None = None
    image: str | None = None
    preview: str | None = None
    round: int = 0
    preview_scores: dict[int, FiniteFloat] = {}  # step -> score of the x0 preview
    preview_clarity: dict[int, FiniteFloat] = {}  # step -> P(that preview is clear enough to judge)


class ReflectionRecord(_Part):
    round: int
    verdict: str
    critique: str
    prompt: str
    score: FiniteFloat
    candidate: int | None = None


class CostRecord(_Part):
    denoiser_rows: int
    denoiser_rows_full: int
    judge_calls: int
    seconds: dict[str, float]


class Record(_Part):
    """All of one prompt, as in design.md 5."""

    prompt: str
    rewrites: list[RewriteRecord]
    candidates: list[CandidateRecord]
    best: int
    reflection: list[ReflectionRecord]
    cost: CostRecord
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def winner(self) -> CandidateRecord:
        return next(c for c in self.candidates if c.index == self.best)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)


def versions() -> dict[str, str]:
    """Version of this package, of Python and of the libraries that decide the pixels.

    With them, where torch is in use, its number of CPU threads: sums are rounded in another order with
    another number.
    """
    import platform

    from .. import __version__

    found = {"reprise": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "torch" in sys.modules:
        found["threads"] = str(sys.modules["torch"].get_num_threads())
    return found


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file so that it is either the old one or all of the new one, never a part.

    Raises BadInput where the path cannot be written, RepriseError where the disk is full.
    """
    if isinstance(data, str):
        data = data.encode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            for_others(Path(part))
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, which is made where it is not there. Raises as `write_whole`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")
    except OSError as error:
        raise _cannot_write(path, error) from error


def read_text(path: Path, what: str, verb: str, remedy: str = "") -> str:
    """A user's text file, with or without a byte order mark. Raises BadInput.

    `what` names it in messages, `verb` is "is" or "are", and `remedy` ends the one of a file not to be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"cannot read the {what} {path}: {error.strerror}{remedy}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"the {what} {path} {verb} not UTF-8 text (byte {error.start})") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, but for one half written; none where there is no file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def prepare_folder(path: Path) -> Path:
    """Make `path` a folder that can be written to, before any work is spent. Raises BadInput."""
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path} is a file; expected a folder to write to: give another --out")
    write_whole(path / ".probe", b"")
    (path / ".probe").unlink(missing_ok=True)
    return path


def record_from(outcome: Outcome, settings: dict[str, Any], versions: dict[str, str]) -> Record:
    """The record of an outcome. Raises RepriseError on a number that is none (NaN, infinite)."""
    cost = outcome.cost
    try:
        return Record.model_validate(
            {
                "prompt": outcome.prompt,
                "rewrites": [vars(r) for r in outcome.rewrites],
                "candidates": [
                    {**_fields(c), "image": c.path, "preview": c.preview_path} for c in outcome.candidates
                ],
                "best": outcome.best,
                "reflection": [vars(r) for r in outcome.reflection],
                "cost": vars(cost),
                "settings": settings,
                "versions": versions,
            }
        )
    except ValidationError as error:
        raise RepriseError(f"this run's record is not sound: {one_line(error)}") from error


def save_outcome(
    folder: Path, outcome: Outcome, settings: dict[str, Any], versions: dict[str, str]
) -> Record:
    """Write the pictures, then the record. Sets `path` and `preview_path` of the outcome's candidates."""
    clear(folder)
    for candidate in outcome.candidates:
        candidate.path = candidate.preview_path = None
        name = f"{candidate.index:02d}-{candidate.seed}.png"
        drawn = {
            "prompt": candidate.prompt,
            "user_prompt": outcome.prompt,
            "seed": candidate.seed,
            "settings": settings,
        }
        if candidate.image is not None:
            candidate.path = f"candidates/{name}"
            data = png_bytes(candidate.image, {**drawn, "scores": candidate.scores})
            write_whole(folder / candidate.path, data)
            if candidate.index == outcome.best:
                write_whole(folder / BEST, data)
        elif candidate.preview is not None:
            candidate.preview_path = f"previews/{name}"
            data = png_bytes(candidate.preview, {**drawn, "pruned_at": candidate.pruned_at})
            write_whole(folder / candidate.preview_path, data)
    record = record_from(outcome, settings, versions)
    write_whole(folder / RECORD, record.to_json() + "\n")
    return record


def load_record(path: Path) -> Record:
    """Raises BadInput where the file is no record."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise BadInput(f"{path} is no record of this program: {one_line(error)}") from error


def finished(folder: Path, prompt: str, settings: dict[str, Any]) -> Record | None:
    """The record in `folder` if it is whole and of the same prompt and settings, else None.

    Previews may be missing: nobody would have a search drawn again for those.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = load_record(path)
    except BadInput:
        return None
    same = record.prompt == prompt and record.settings == json.loads(json.dumps(settings))
    whole = all((folder / c.image).is_file() for c in record.candidates if c.image)
    return record if same and whole else None


def clear(folder: Path) -> None:
    """Remove an earlier record and the pictures that it names, and nothing else."""
    path = folder / RECORD
    if not path.is_file():
        return
    try:
        named = [name for c in load_record(path).candidates for name in (c.image, c.preview) if name]
    except BadInput:
        named = []
    path.unlink()
    for name in named:
        # A record is a file that anyone may have edited: stay inside the folder.
        parts = PurePosixPath(name).parts
        if len(parts) == 2 and parts[0] in FOLDERS and parts[1] != "..":
            (folder / name).unlink(missing_ok=True)


def slug(text: str, salt: str = "", length: int = 40) -> str:
    """A name for a folder: the text's words, and 6 hex digits of it (and of `salt`), so that two
    prompts do not share one."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-")
    digest = hashlib.sha256((text + salt).encode("utf-8")).hexdigest()[:6]
    return f"{words}-{digest}" if words else digest


def png_bytes(image: Tensor, info: dict[str, Any] | None = None) -> bytes:
    """A picture (H, W, 3) in 0..1 as a PNG; `info` goes into its text field "reprise" as JSON."""
    import io

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    pixels = image.detach().float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    text = PngInfo()
    if info is not None:
        text.add_itxt("reprise", json.dumps(info, ensure_ascii=False))
    out = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(out, "PNG", pnginfo=text)
    return out.getvalue()


def _fields(candidate: Any) -> dict[str, Any]:
    pictures = ("image", "path", "preview", "preview_path")
    return {key: value for key, value in vars(candidate).items() if key not in pictures}


def for_others(path: Path) -> None:
    """Give a file the mode that `open` would: mkstemp and safetensors make theirs for the owner alone."""
    os.chmod(path, 0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError) -> RepriseError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RepriseError(
            f"the disk is full: {path} was not written; finished prompts are kept, "
            "make room and run the same command again"
        )
    return BadInput(f"cannot write {path}: {error.strerror or error}; give another --out")
