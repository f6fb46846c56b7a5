"""A prompt's folder with its pictures and `record.json`, from which each picture can be drawn again.

The folder holds `candidates/NN-SEED.png`, `previews/NN-SEED.png` of pruned candidates (the last preview that
the judge saw), `best.png` and `record.json`. The record is written last: a folder with a record is finished,
one without is computed again.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from ..core.config import validation_message
from ..core.errors import BadInput, RepriseError
from ..core.types import Outcome
from .files import write_whole

if TYPE_CHECKING:
    from torch import Tensor


RECORD = "record.json"
BEST = "best.png"
FOLDERS = ("candidates", "previews")  # with the pictures that a record names
LIBRARIES = ("torch", "diffusers", "transformers", "numpy")  # on whose versions the pixels depend


class _RecordModel(BaseModel):
    # Records of newer versions may have more fields: they are ignored. The known ones must be valid.
    model_config = ConfigDict(extra="ignore")


class RewriteRecord(_RecordModel):
    reason: str
    prompt: str
    rewriter: str
    fallback: str | None = None


class CandidateRecord(_RecordModel):
    """One candidate. `image` is a path relative to the record's folder, with "/".

    Of a pruned candidate `image` is None, and `preview` is its last x0 preview, if there is one.
    """

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


def make_record(outcome: Outcome, settings: dict[str, Any], versions: dict[str, str]) -> Record:
    """The record of an outcome. Raises RepriseError if a number in it is NaN or infinite."""
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
        raise RepriseError(f"this run's record is not valid: {validation_message(error)}") from error


def save_outcome(
    folder: Path, outcome: Outcome, settings: dict[str, Any], versions: dict[str, str]
) -> Record:
    """Write the pictures, then the record. Sets `path` and `preview_path` of the outcome's candidates.

    An earlier record in `folder` is deleted first, with its pictures.
    """
    delete_record(folder)
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
    record = make_record(outcome, settings, versions)
    write_whole(folder / RECORD, record.to_json() + "\n")
    return record


def load_record(path: Path) -> Record:
    """Read a record. Raises BadInput if the file is not one."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise BadInput(f"{path} is not a record of this program: {validation_message(error)}") from error


def finished_record(folder: Path, prompt: str, settings: dict[str, Any]) -> Record | None:
    """The record in `folder` if it is complete and of the same prompt and settings, else None.

    Missing previews do not count: a search is not repeated for them.
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


def delete_record(folder: Path) -> None:
    """Delete the record in `folder` and the pictures that it names, and nothing else."""
    path = folder / RECORD
    if not path.is_file():
        return
    try:
        named = [name for c in load_record(path).candidates for name in (c.image, c.preview) if name]
    except BadInput:
        named = []
    path.unlink()
    for name in named:
        # Anyone may have edited the record: delete nothing outside the folder.
        parts = PurePosixPath(name).parts
        if len(parts) == 2 and parts[0] in FOLDERS and parts[1] != "..":
            (folder / name).unlink(missing_ok=True)


def png_bytes(image: Tensor, info: dict[str, Any] | None = None) -> bytes:
    """A picture (H, W, 3) in 0..1 as a PNG file; `info` is stored in its text field "reprise" as JSON."""
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
