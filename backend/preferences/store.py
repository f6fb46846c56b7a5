"""The preference store: a folder of pairs, the pictures they speak of, and what a person struck.

`pairs.jsonl` (pictures) and `rewrites.jsonl` (texts) hold a pair a line and only grow; `images/` the
pictures, 8-bit PNG, each under a name that its pixels decide; `strikes.json` the ids of pairs that nobody
should learn from. A pair's id is made of what it compares, so that the same one, mined twice, is kept once.
Two pairs that say the opposite of each other (two rewards that disagree) are both left out, as a tie is.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ..cache import Cache
from ..config import one_line
from ..errors import BadInput, RepriseError
from ..runs import write_whole

if TYPE_CHECKING:
    from torch import Tensor

PAIRS, REWRITES, STRIKES, IMAGES = "pairs.jsonl", "rewrites.jsonl", "strikes.json", "images"
WITHOUT_END = 2**62  # bytes: a store forgets nothing


class _Part(BaseModel):
    # A newer version may write more; what is there must be right.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Side(_Part):
    """One picture of a pair."""

    image: str  # its name in the store
    drawn_as: str  # the words that drew it
    score: FiniteFloat  # as the reward gave it
    seed: int | None = None
    scores: dict[str, FiniteFloat] = {}  # of other rewards


class Text(_Part):
    """One rewrite of a pair. `score` is the mean over the pictures it drew."""

    reason: str
    rewrite: str
    score: FiniteFloat
    pictures: int = 1


class _Origin(_Part):
    prompt: str = Field(min_length=1)  # the user's, which the judge compared with
    reward: str
    margin: float = Field(gt=0)  # between the scores: in parts of the reward's range, where that is known
    source: str  # "render", "grpo", "round", "judge-data", "comfyui" or "table"
    run: str
    renderer: str | None = None


class Pair(_Origin):
    """Two pictures of one prompt; `condition` is what a renderer is told when it learns from them."""

    condition: str = Field(min_length=1)
    chosen: Side
    rejected: Side

    @property
    def id(self) -> str:
        return Cache.key("pair", self.condition, self.chosen.image, self.rejected.image)

    @property
    def opposite(self) -> str:
        return Cache.key("pair", self.condition, self.rejected.image, self.chosen.image)


class RewritePair(_Origin):
    """Two rewrites of one prompt."""

    chosen: Text
    rejected: Text

    @property
    def id(self) -> str:
        return Cache.key("rewrites", self.prompt, *_words(self.chosen), *_words(self.rejected))

    @property
    def opposite(self) -> str:
        return Cache.key("rewrites", self.prompt, *_words(self.rejected), *_words(self.chosen))


P = TypeVar("P", Pair, RewritePair)


@dataclass(frozen=True)
class Added:
    """What became of pairs that were handed to the store."""

    new: int
    known: int


def is_store(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (PAIRS, REWRITES))


class Store:
    """A store's folder. With `create` it need not be there yet. Raises BadInput for what is no store."""

    def __init__(self, folder: str | Path, create: bool = False):
        self.folder = Path(folder)
        if not create and not is_store(self.folder):
            raise BadInput(
                f"{self.folder} holds no preferences; fill it with: reprise preferences mine RUN --store "
                f"{self.folder}"
            )
        self.images = Cache(self.folder / IMAGES, WITHOUT_END)

    def put_image(self, image: Tensor) -> str:
        """Keep a picture (H, W, 3) in 0..1; its name. Raises RepriseError where the disk does not take it."""
        pixels = image.detach().float().clamp(0, 1).mul(255).round().byte().cpu().contiguous()
        digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
        name = Cache.key("picture", *pixels.shape, digest)
        if not self.has_image(name):
            self.images.put_image(name, pixels.float() / 255)
            if not self.has_image(name):
                raise RepriseError(
                    f"a picture cannot be written to {self.images.folder}; nothing was recorded: make room, "
                    "or give another folder"
                )
        return name

    def has_image(self, name: str) -> bool:
        return self.image_path(name).is_file()

    def image_path(self, name: str) -> Path:
        return self.images.folder / name[:2] / f"{name}.png"

    def image(self, name: str) -> Tensor | None:
        """The picture (H, W, 3) in 0..1; None where it is gone or damaged."""
        found = self.images.get_image(name)
        return found[0] if found else None

    def add(self, pairs: Iterable[Pair]) -> Added:
        """Keep pairs whose pictures are in already, each once."""
        return self._add(PAIRS, pairs, self.all_pairs())

    def add_rewrites(self, pairs: Iterable[RewritePair]) -> Added:
        return self._add(REWRITES, pairs, self.all_rewrites())

    def all_pairs(self) -> list[Pair]:
        """Every pair on record, struck ones too. Raises BadInput for a damaged line."""
        return self._read(PAIRS, Pair)

    def all_rewrites(self) -> list[RewritePair]:
        return self._read(REWRITES, RewritePair)

    def pairs(self) -> list[Pair]:
        """The pairs to learn from: those not struck, and not contradicted by another."""
        return self._usable(self.all_pairs())

    def rewrites(self) -> list[RewritePair]:
        return self._usable(self.all_rewrites())

    def struck(self) -> set[str]:
        path = self.folder / STRIKES
        return set(read_strikes(path)[0]) if path.is_file() else set()

    def strike(self, struck: Iterable[str], kept: Iterable[str] = ()) -> tuple[int, int]:
        """Take pairs out, by their ids, and others in again; (newly struck, restored). Raises BadInput for an
        id that the store does not have."""
        struck, kept, before = set(struck), set(kept), self.struck()
        known = {pair.id for pair in (*self.all_pairs(), *self.all_rewrites())}
        foreign = sorted((struck | kept) - known)
        if foreign:
            raise BadInput(
                f"{len(foreign)} of these pairs are not in {self.folder} (the first: {foreign[0][:12]}…); "
                "strikes belong to the store whose page they were made on"
            )
        after = before - kept | struck
        text = json.dumps({"format": 1, "struck": sorted(after)}, indent=1) + "\n"
        write_whole(self.folder / STRIKES, text)
        return len(after - before), len(before - after)

    def statistics(self) -> dict[str, Any]:
        """What is in the store, in figures; a JSON object."""
        pairs, rewrites = self.all_pairs(), self.all_rewrites()
        named = {side.image for pair in pairs for side in (pair.chosen, pair.rejected)}
        return {
            "pairs": self._figures(pairs, self._usable(pairs)),
            "rewrites": self._figures(rewrites, self._usable(rewrites)),
            "images": {"named": len(named), "gone": sum(not self.has_image(name) for name in named)},
        }

    def _figures(self, recorded: Sequence[P], usable: Sequence[P]) -> dict[str, Any]:
        struck = self.struck()
        out = sum(pair.id in struck for pair in recorded)
        margins = sorted(pair.margin for pair in usable)
        return {
            "recorded": len(recorded), "struck": out, "contradicted": len(recorded) - out - len(usable),
            "usable": len(usable), "prompts": len({pair.prompt for pair in usable}),
            "margin": {"least": margins[0], "median": median(margins), "most": margins[-1]}
            if margins else None,
            "rewards": {
                reward: {"pairs": len(found), "chosen": mean(pair.chosen.score for pair in found),
                         "rejected": mean(pair.rejected.score for pair in found)}
                for reward in dict.fromkeys(pair.reward for pair in usable)
                if (found := [pair for pair in usable if pair.reward == reward])
            },
            "runs": dict(Counter(f"{pair.source} {pair.run}" for pair in usable)),
        }  # fmt: skip

    def _usable(self, pairs: list[P]) -> list[P]:
        struck = self.struck()
        ids = {pair.id for pair in pairs} - struck
        # A struck pair contradicts no one any more.
        return [pair for pair in pairs if pair.id not in struck and pair.opposite not in ids]

    def _add(self, name: str, pairs: Iterable[P], recorded: Sequence[P]) -> Added:
        known, fresh, again = {pair.id for pair in recorded}, [], 0
        for pair in pairs:
            if pair.id in known:
                again += 1
                continue
            known.add(pair.id)
            fresh.append(pair)
        if fresh:
            lines = [pair.model_dump_json() + "\n" for pair in (*recorded, *fresh)]
            write_whole(self.folder / name, "".join(lines))
        return Added(len(fresh), again)

    def _read(self, name: str, kind: type[P]) -> list[P]:
        path = self.folder / name
        if not path.is_file():
            return []
        found = []
        # Not splitlines: a line separator of Unicode inside a prompt ends no line.
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                found.append(kind.model_validate_json(line))
            except ValidationError as error:
                raise BadInput(f"{path}, line {number}: {one_line(error)}; delete the line, or mine the runs "
                               "into another --store") from error  # fmt: skip
        return found


def read_strikes(path: Path) -> tuple[list[str], list[str]]:
    """(struck, kept) of a file of strikes, the store's own or one that its page gave. Raises BadInput."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        struck, kept = found["struck"], found.get("kept", [])
        if found["format"] != 1 or not all(isinstance(one, str) for one in (*struck, *kept)):
            raise ValueError("another format")
    except OSError as error:
        raise BadInput(f"cannot read the strikes {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f'{path} holds no strikes; expected {{"format": 1, "struck": ["ID", …]}}, as the page of '
            "`reprise preferences page` gives it"
        ) from error
    return struck, kept


def _words(text: Text) -> tuple[str, str]:
    return text.reason, text.rewrite
