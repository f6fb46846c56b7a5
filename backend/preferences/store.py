"""The preference store: a folder of pairs, the pictures they speak of, and what a person struck.

`pairs.jsonl` (pictures) and `rewrites.jsonl` (texts) hold a pair a line and only grow; `images/` the
pictures, 8-bit PNG, each under a name that its pixels decide; `strikes.json` the ids of pairs that nobody
should learn from. A pair's id is made of what it compares, so that the same one, mined twice, is kept once;
where two rewards found it, once for each, and who learns from both sees it once. Pairs that say the opposite
of each other, where rewards disagree and nobody asked for one of them, are left out, as ties are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ..core.config import validation_message
from ..core.errors import BadInput, RepriseError
from ..storage.cache import Cache
from ..storage.files import prepare_folder, read_text, write_whole

if TYPE_CHECKING:
    from torch import Tensor

PAIRS, REWRITES, STRIKES, IMAGES = "pairs.jsonl", "rewrites.jsonl", "strikes.json", "images"
LOCK = ".lock"  # held while pairs are added


def canonical_reward_name(reward: str) -> str:
    """The one name of a reward, or of a mix joined by "+": what earlier versions recorded of a VLM judge that
    can say what is wrong had #critique after it, though its scores are the same."""
    return re.sub(r"(vlm:[^+]*)#(?:critique|match)(?=\+|$)", r"\1", reward)


RewardName = Annotated[str, AfterValidator(canonical_reward_name)]


class _StoreModel(BaseModel):
    # A newer version may write more; what is there must be right.
    model_config = ConfigDict(extra="ignore", frozen=True)


class PairPicture(_StoreModel):
    """One picture of a pair."""

    image: str  # its name in the store
    drawn_as: str  # the words that drew it
    score: FiniteFloat  # as the reward gave it
    seed: int | None = None
    scores: dict[RewardName, FiniteFloat] = {}  # of other rewards


class PairText(_StoreModel):
    """One rewrite of a pair. `score` is the mean over the pictures it drew."""

    reason: str
    rewrite: str
    score: FiniteFloat
    pictures: int = 1


class _PairBase(_StoreModel):
    prompt: str = Field(min_length=1)  # which the judge compared with; of rewrites, which was rewritten
    reward: RewardName
    margin: FiniteFloat = Field(gt=0)  # of the scores: in parts of the reward's range, where it is known
    source: str  # "render", "training", "round", "data judge", "comfyui" or "table"
    run: str
    renderer: str | None = None


class Pair(_PairBase):
    """Two pictures of one prompt; `condition` is what a renderer is told when it learns from them."""

    condition: str = Field(min_length=1)
    chosen: PairPicture
    rejected: PairPicture

    @property
    def id(self) -> str:
        return Cache.key("pair", self.condition, self.chosen.image, self.rejected.image)

    @property
    def opposite(self) -> str:
        return Cache.key("pair", self.condition, self.rejected.image, self.chosen.image)


class RewritePair(_PairBase):
    """Two rewrites of one prompt."""

    chosen: PairText
    rejected: PairText

    @property
    def id(self) -> str:
        return Cache.key("rewrites", self.prompt, *_text_key(self.chosen), *_text_key(self.rejected))

    @property
    def opposite(self) -> str:
        return Cache.key("rewrites", self.prompt, *_text_key(self.rejected), *_text_key(self.chosen))


P = TypeVar("P", Pair, RewritePair)


@dataclass(frozen=True)
class AddedPairs:
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
        self.images = Cache(self.folder / IMAGES, limit=None)  # a store forgets nothing

    def check(self) -> None:
        """Raises BadInput where something of it cannot be read, before more is put into it."""
        self.all_pairs(), self.all_rewrites(), self.struck_ids()

    def put_image(self, image: Tensor) -> str:
        """Keep a picture (H, W, 3) in 0..1; its name. Raises RepriseError where the disk does not take it."""
        name = picture_name(image)
        if self.image(name) is None:  # not there, or damaged
            self.images.put_image(name, image)
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

    def add(self, pairs: Iterable[Pair]) -> AddedPairs:
        """Keep pairs whose pictures are in already, each once."""
        return self._add(PAIRS, Pair, pairs)

    def add_rewrites(self, pairs: Iterable[RewritePair]) -> AddedPairs:
        return self._add(REWRITES, RewritePair, pairs)

    def all_pairs(self) -> list[Pair]:
        """Every pair on record, struck ones too. Raises BadInput for a damaged line."""
        return self._read(PAIRS, Pair)

    def all_rewrites(self) -> list[RewritePair]:
        return self._read(REWRITES, RewritePair)

    def pairs(self, reward: str | None = None) -> list[Pair]:
        """The pairs to learn from, of one reward or of all; see `usable`."""
        return self.usable(self.all_pairs(), reward)

    def rewrites(self, reward: str | None = None) -> list[RewritePair]:
        return self.usable(self.all_rewrites(), reward)

    def struck_ids(self) -> set[str]:
        path = self.folder / STRIKES
        return set(read_strikes(path)[0]) if path.is_file() else set()

    def strike(self, struck: Iterable[str], kept: Iterable[str] = ()) -> tuple[int, int]:
        """Take pairs out, by their ids, and others in again; (newly struck, restored). Raises BadInput for an
        id that the store does not have."""
        struck, kept, before = set(struck), set(kept), self.struck_ids()
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
            "pairs": self._figures(pairs),
            "rewrites": self._figures(rewrites),
            "images": {"named": len(named), "gone": sum(not self.has_image(name) for name in named)},
        }

    def _figures(self, recorded: Sequence[P]) -> dict[str, Any]:
        usable, ids = self.usable(recorded), {pair.id for pair in recorded}
        out = len(ids & self.struck_ids())
        margins = sorted(pair.margin for pair in usable)
        return {
            "recorded": len(ids),
            "struck": out,
            "contradicted": len(ids) - out - len(usable),
            "usable": len(usable),
            "prompts": len({pair.prompt for pair in usable}),
            "margin": {"least": margins[0], "median": median(margins), "most": margins[-1]}
            if margins
            else None,
            "rewards": {
                reward: {
                    "pairs": len(found),
                    "chosen": mean(pair.chosen.score for pair in found),
                    "rejected": mean(pair.rejected.score for pair in found),
                }
                for reward in dict.fromkeys(pair.reward for pair in recorded)
                if (found := self.usable(recorded, reward))
            },
            "runs": dict(Counter(f"{pair.source} {pair.run}" for pair in usable)),
        }

    def usable(self, recorded: Sequence[P], reward: str | None = None) -> list[P]:
        """Of these pairs the ones to learn from: of `reward`, or of all, not struck, and not contradicted by
        another of them; each comparison once."""
        struck, reward = self.struck_ids(), reward and canonical_reward_name(reward)
        # A struck pair contradicts no one any more.
        ids = {
            pair.id: pair
            for pair in reversed(recorded)
            if reward in (None, pair.reward) and pair.id not in struck
        }
        return [pair for pair in recorded if ids.get(pair.id) is pair and pair.opposite not in ids]

    def _add(self, name: str, kind: type[P], pairs: Iterable[P]) -> AddedPairs:
        from filelock import FileLock

        pairs = list(pairs)
        if not pairs:
            return AddedPairs(0, 0)
        prepare_folder(self.folder)
        with FileLock(self.folder / LOCK):  # another process may mine into the same store
            recorded = self._read(name, kind)
            known, fresh, again = {(pair.id, pair.reward) for pair in recorded}, [], 0
            for pair in pairs:
                if (pair.id, pair.reward) in known:
                    again += 1
                    continue
                known.add((pair.id, pair.reward))
                fresh.append(pair)
            if fresh:
                path = self.folder / name
                # Lines stay as they are: a newer version may have written more into them.
                before = path.read_bytes() if recorded else b""
                ended = before if before.endswith(b"\n") or not before else before + b"\n"
                write_whole(path, ended + "".join(pair.model_dump_json() + "\n" for pair in fresh).encode())
        return AddedPairs(len(fresh), again)

    def _read(self, name: str, kind: type[P]) -> list[P]:
        path = self.folder / name
        if not path.is_file():
            return []
        found = []
        # Not splitlines: a line separator of Unicode inside a prompt ends no line.
        text = read_text(path, "preferences", "are", "; bring the file back, or give another --store")
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                found.append(kind.model_validate_json(line))
            except ValidationError as error:
                raise BadInput(
                    f"{path}, line {number}: {validation_message(error)}; delete the line, or mine the runs "
                    "into another --store"
                ) from error
        return found


def picture_name(image: Tensor) -> str:
    """The name that the pixels of a picture (H, W, 3) in 0..1 decide."""
    pixels = image.detach().float().clamp(0, 1).mul(255).round().byte().cpu().contiguous()
    return Cache.key("picture", *pixels.shape, hashlib.sha256(pixels.numpy().tobytes()).hexdigest())


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


def _text_key(text: PairText) -> tuple[str, str]:
    return text.reason, text.rewrite
