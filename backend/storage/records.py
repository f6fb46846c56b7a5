"""A prompt's folder with its pictures and `record.json`, from which each picture can be drawn again.

The folder holds `candidates/NN-SEED.png`, `previews/NN-SEED.png` of pruned candidates (the last preview that
the judge saw), `best.png` and `record.json`. The record is written last: a folder with a record is finished
if its pictures have the checksums that the record names; everything else is computed again. What is computed
again replaces nothing: the earlier files are moved to `replaced-1`, `replaced-2`, …
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from ..core.config import validation_message
from ..core.errors import FEW, BadInput, RepriseError
from ..core.types import Outcome
from .files import slug, write_whole
from .outputs import is_set_aside, set_aside

if TYPE_CHECKING:
    from torch import Tensor


RECORD = "record.json"
BEST = "best.png"
CANDIDATES, PREVIEWS = "candidates", "previews"
FILES = (PREVIEWS, CANDIDATES, BEST, RECORD)  # of a prompt; the record last, as what makes them whole
PNG_FIELD = "reprise"  # a picture's text field with its prompt and seed
LIBRARIES = ("torch", "diffusers", "transformers", "numpy")  # on whose versions the pixels depend


class _RecordModel(BaseModel):
    # Records of newer versions may have more fields: they are ignored. The known ones must be valid.
    model_config = ConfigDict(extra="ignore")


class RewriteRecord(_RecordModel):
    reason: str
    prompt: str
    rewriter: str
    fallback: str | None = None


# Anyone may have edited a record: no path leads out of its folder.
PicturePath = Annotated[str, Field(pattern=rf"^({CANDIDATES}|{PREVIEWS})/[A-Za-z0-9_-][A-Za-z0-9._-]*$")]


class CandidateRecord(_RecordModel):
    """One candidate. `image` is a path relative to the record's folder, with "/".

    Of a pruned candidate `image` is None, and `preview` is its last x0 preview, if there is one. `sha256` is
    of the file of either.
    """

    index: int
    seed: int
    prompt: str
    scores: dict[str, FiniteFloat] = {}
    score: FiniteFloat | None = None
    pruned_at: int | None = None
    image: PicturePath | None = None
    preview: PicturePath | None = None
    sha256: str | None = None
    round: int = 0
    preview_scores: dict[int, FiniteFloat] = {}  # step -> score of the x0 preview
    preview_clarity: dict[int, FiniteFloat] = {}  # step -> P(that preview is clear enough to judge)


class ReflectionRecord(_RecordModel):
    round: int
    verdict: str
    critique: str
    prompt: str
    score: FiniteFloat
    candidate: int | None = None


class CostRecord(_RecordModel):
    denoiser_rows: int
    denoiser_rows_full: int
    judge_calls: int
    seconds: dict[str, float]


class Record(_RecordModel):
    """Everything that was made for one prompt (design.md 5)."""

    prompt: str
    rewrites: list[RewriteRecord]
    candidates: list[CandidateRecord]
    best: int
    reflection: list[ReflectionRecord]
    cost: CostRecord
    settings: dict[str, Any]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _check_numbers(self) -> Record:
        numbers = [c.index for c in self.candidates]
        if len(set(numbers)) < len(numbers):
            raise ValueError("two candidates have the same index")
        if self.best not in numbers:
            raise ValueError(f"the best is candidate {self.best}, which is not there")
        return self

    @property
    def winner(self) -> CandidateRecord:
        return next(c for c in self.candidates if c.index == self.best)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)


def installed_versions() -> dict[str, str]:
    """Versions of this package, of Python and of the libraries on which the pixels depend.

    If torch is loaded, also its number of CPU threads: another number adds in another order, which rounds
    differently.
    """
    import platform

    from ... import __version__

    found = {"reprise": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "torch" in sys.modules:
        found["threads"] = str(sys.modules["torch"].get_num_threads())
    return found


def make_record(
    outcome: Outcome,
    settings: dict[str, Any],
    versions: dict[str, str],
    sums: Mapping[int, str] | None = None,
) -> Record:
    """The record of an outcome. `sums` are the SHA-256 of the candidates' files by index.

    Raises RepriseError if a number in it is NaN or infinite.
    """
    sums = sums or {}
    try:
        return Record.model_validate(
            {
                "prompt": outcome.prompt,
                "rewrites": [vars(r) for r in outcome.rewrites],
                "candidates": [
                    {
                        **_fields(c),
                        "image": c.path,
                        "preview": c.preview_path,
                        "sha256": sums.get(c.index),
                    }
                    for c in outcome.candidates
                ],
                "best": outcome.best,
                "reflection": [vars(r) for r in outcome.reflection],
                "cost": vars(outcome.cost),
                "settings": settings,
                "versions": versions,
            }
        )
    except ValidationError as error:
        raise RepriseError(f"this run's record is not valid: {validation_message(error)}") from error


def save_outcome(
    folder: Path,
    outcome: Outcome,
    settings: dict[str, Any],
    versions: dict[str, str],
    note: Callable[[str], None] = lambda text: None,
) -> Record:
    """Write the pictures, then the record. Sets `path`, `preview_path` of the outcome's candidates.

    What an earlier record in `folder` names is moved aside first, and `note` is told where.
    """
    if (folder / RECORD).exists() and (aside := set_aside(folder, FILES)):
        note(f"what was there is kept in {aside}")
    sums: dict[int, str] = {}
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
            candidate.path = f"{CANDIDATES}/{name}"
            data = png_bytes(candidate.image, {**drawn, "scores": candidate.scores})
            write_whole(folder / candidate.path, data)
            if candidate.index == outcome.best:
                write_whole(folder / BEST, data)
        elif candidate.preview is not None:
            candidate.preview_path = f"{PREVIEWS}/{name}"
            data = png_bytes(candidate.preview, {**drawn, "pruned_at": candidate.pruned_at})
            write_whole(folder / candidate.preview_path, data)
        else:
            continue
        sums[candidate.index] = hashlib.sha256(data).hexdigest()
    record = make_record(outcome, settings, versions, sums)
    write_whole(folder / RECORD, record.to_json() + "\n")
    return record


def find_records(folder: Path) -> list[Path]:
    """The records in and below `folder`, without those that a later call has moved aside."""
    return [
        path
        for path in sorted(folder.rglob(RECORD))
        if not any(is_set_aside(name) for name in path.relative_to(folder).parts)
    ]


def load_record(path: Path) -> Record:
    """Read a record. Raises BadInput if the file is not one."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise BadInput(f"{path} is not a record of this program: {validation_message(error)}") from error


def finished_record(
    folder: Path, prompt: str, settings: dict[str, Any], note: Callable[[str], None] = lambda text: None
) -> Record | None:
    """The record in `folder` if it is of the same prompt and settings and its pictures are whole, else None.

    `note` is told why what is there does not count. A best picture that is gone or damaged is copied again.
    Missing previews do not count: a search is not repeated for them. Damaged ones do.
    """
    if not (folder / RECORD).is_file():
        return None
    try:
        record = load_record(folder / RECORD)
    except BadInput as error:
        note(f"drawn again: {error}")
        return None
    if record.prompt != prompt:
        note(f"{folder} holds another prompt: {record.prompt[:80]}")
        return None
    now = json.loads(json.dumps(settings))
    if other := [
        key for key in {**now, **record.settings} if now.get(key, ...) != record.settings.get(key, ...)
    ]:
        named = ", ".join(other[:FEW]) + (", …" if len(other) > FEW else "")
        note(f"{folder} was drawn with other settings: {named}")
        return None
    drawn = [(c.image, c.sha256) for c in record.candidates if c.image]
    drawn += [(c.preview, c.sha256) for c in record.candidates if c.preview and (folder / c.preview).exists()]
    if broken := [name for name, sha256 in drawn if not _is_whole(folder / name, sha256)]:
        note(
            f"drawn again: {len(broken)} of {len(drawn)} pictures in {folder} are gone or damaged, first "
            f"{broken[0]}"
        )
        return None
    best = record.winner
    if best.image and not _is_whole(folder / BEST, best.sha256):
        note(f"{folder / BEST} is gone or damaged; copied again from {best.image}")
        write_whole(folder / BEST, (folder / best.image).read_bytes())
    return record


def check_folder(folder: Path) -> None:
    """Raises BadInput where a prompt's folder holds a picture of others under a name of `save_outcome`.

    Pictures say themselves that they are of this program; one that cannot be read is a damaged one of ours.
    """
    pictures = [folder / BEST]
    if not (folder / RECORD).is_file():  # else they are moved aside
        pictures += [path for name in (CANDIDATES, PREVIEWS) for path in sorted((folder / name).glob("*"))]
    for path in pictures:
        if path.exists() and _is_foreign(path):
            raise BadInput(f"{path} was not made by this program; move it, or give another --out")


def prompt_folders(out: Path, prompts: Sequence[str]) -> dict[str, Path]:
    """Prompt -> its folder in `out`, named by its words and a hash.

    Where that is another prompt's, by its record or in this call, the name gets a number.
    """
    found: dict[str, Path] = {}
    taken: set[Path] = set()
    for prompt in prompts:
        free = None
        for number in count(1):
            folder = out / (slug(prompt) if number == 1 else f"{slug(prompt)}-{number}")
            owner = _prompt_of(folder)
            if owner == prompt:
                break
            if owner is None and folder not in taken:
                free = free or folder
            if not folder.exists() and folder not in taken:
                folder = free or folder
                break
        found[prompt] = folder
        taken.add(folder)
    return found


def _prompt_of(folder: Path) -> str | None:
    """The prompt of the record in `folder`; None where there is none, or it cannot be read."""
    try:
        return json.loads((folder / RECORD).read_bytes())["prompt"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _is_whole(path: Path, sha256: str | None) -> bool:
    """Whether a picture's file is there as it was written; without a checksum, whether it can be read."""
    from PIL import Image

    try:
        if sha256 is not None:
            return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        with Image.open(path) as picture:
            picture.load()
        return True
    except Exception:  # missing or damaged; Pillow raises many types
        return False


def _is_foreign(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return PNG_FIELD not in picture.info
    except Exception:  # damaged
        return False


def png_bytes(image: Tensor, info: dict[str, Any] | None = None) -> bytes:
    """A picture (H, W, 3) in 0..1 as a PNG file; `info` is stored in its text field `PNG_FIELD` as JSON."""
    import io

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    pixels = image.detach().float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    text = PngInfo()
    if info is not None:
        text.add_itxt(PNG_FIELD, json.dumps(info, ensure_ascii=False))
    out = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(out, "PNG", pnginfo=text)
    return out.getvalue()


def _fields(candidate: Any) -> dict[str, Any]:
    pictures = ("image", "path", "preview", "preview_path")
    return {key: value for key, value in vars(candidate).items() if key not in pictures}
