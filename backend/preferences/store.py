"""The preference store: a folder of pairs, their pictures, and a list of struck pairs.

`pairs.jsonl` (pictures) and `rewrites.jsonl` (texts) hold one pair a line; lines are only ever added.
`images/` holds the pictures as 8-bit PNG, each named by a hash of its pixels. `strikes.json` holds the ids of
pairs that a person struck: no training learns from them.

A pair's id is a hash of what it compares, so a pair that is mined twice is stored once; if two rewards found
it, once for each reward. A training on both rewards sees it once. Two pairs that contradict each other,
because their rewards disagree, are both left out, unless the training asks for one of the rewards.
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

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError

from ..core.config import validation_message
from ..core.errors import BadInput, RepriseError
from ..core.parsing import parse_json
from ..storage.cache import Cache
from ..storage.files import prepare_folder, read_text, write_whole
from ..storage.outputs import WAIT, lock

if TYPE_CHECKING:
    from torch import Tensor

PAIRS, REWRITES, STRIKES, IMAGES = "pairs.jsonl", "rewrites.jsonl", "strikes.json", "images"


def canonical_reward_name(reward: str) -> str:
    """The name under which a reward, or a mix joined by "+", is stored.

    Earlier versions recorded some VLM judges with #critique or #match at the end. Their scores are the same
    with and without it, so it is removed.
    """
    return re.sub(r"(vlm:[^+]*)#(?:critique|match)(?=\+|$)", r"\1", reward)


RewardName = Annotated[str, AfterValidator(canonical_reward_name)]


class _StoreModel(BaseModel):
    # A newer version may write more fields: they are ignored. The known ones must be valid.
    model_config = ConfigDict(extra="ignore", frozen=True)


class PairPicture(_StoreModel):
    """One picture of a pair."""

    image: str = Field(pattern="^[0-9a-f]{64}$")  # name in the store; no path leads out of it
    drawn_as: str  # the prompt that drew it
    score: FiniteFloat  # as the reward returned it
    seed: int | None = None
    scores: dict[RewardName, FiniteFloat] = {}  # by reward, others included


class PairText(_StoreModel):
    """One rewrite of a pair. `score` is the mean over the pictures that it drew, `pictures` their number."""

    reason: str
    rewrite: str
    score: FiniteFloat
    pictures: PositiveInt = 1


class _PairBase(_StoreModel):
    prompt: str = Field(min_length=1)  # of pictures: what the judge read; of rewrites: what was rewritten
    reward: RewardName
    margin: FiniteFloat = Field(gt=0)  # score difference, as a fraction of the reward's range if it is known
    source: str  # "render", "training", "round", "data judge", "comfyui" or "table"
    run: str
    renderer: str | None = None


class Pair(_PairBase):
    """Two pictures of one prompt. `condition` is the prompt that a renderer is trained on with them."""

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
    """How many pairs `Store.add` stored, and how many were there already."""

    new: int
    known: int


def is_store(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (PAIRS, REWRITES))


class Store:
    """A store in `folder`. Raises BadInput if the folder is no store, unless `create` is set."""

    def __init__(self, folder: str | Path, create: bool = False):
        self.folder = Path(folder)
        if not create and not is_store(self.folder):
            raise BadInput(
                f"{self.folder} holds no preferences; fill it with: reprise preferences mine RUN --store "
                f"{self.folder}"
            )
        self.images = Cache(self.folder / IMAGES, limit=None)  # a store deletes nothing

    def check(self) -> None:
        """Read all of it, before anything is added. Raises BadInput if something cannot be read."""
        self.all_pairs(), self.all_rewrites(), self.struck_ids()

    def put_image(self, image: Tensor) -> str:
        """Store a picture (H, W, 3) in 0..1; returns its name. Raises RepriseError if the disk is full."""
        name = picture_name(image)
        if self.image(name) is None:  # missing or damaged
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
        """The picture (H, W, 3) in 0..1; None if it is missing or damaged."""
        found = self.images.get_image(name)
        return found[0] if found else None

    def add(self, pairs: Iterable[Pair]) -> AddedPairs:
        """Add pairs whose pictures are stored already; a pair that is there is not added again."""
        return self._add(PAIRS, Pair, pairs)

    def add_rewrites(self, pairs: Iterable[RewritePair]) -> AddedPairs:
        return self._add(REWRITES, RewritePair, pairs)

    def all_pairs(self) -> list[Pair]:
        """Every stored pair, struck ones included. Raises BadInput for a damaged line."""
        return self._read(PAIRS, Pair)

    def all_rewrites(self) -> list[RewritePair]:
        return self._read(REWRITES, RewritePair)

    def pairs(self, reward: str | None = None) -> list[Pair]:
        """The pairs to learn from, of `reward` or of all rewards; see `usable`."""
        return self.usable(self.all_pairs(), reward)

    def rewrites(self, reward: str | None = None) -> list[RewritePair]:
        return self.usable(self.all_rewrites(), reward)

    def struck_ids(self) -> set[str]:
        path = self.folder / STRIKES
        return set(read_strikes(path)[0]) if path.is_file() else set()

    def strike(self, struck: Iterable[str], kept: Iterable[str] = ()) -> tuple[int, int]:
        """Strike the pairs with the ids `struck` and restore those with the ids `kept`.

        Returns (number newly struck, number restored). Raises BadInput for an id that is not in the store.
        """
        struck, kept = set(struck), set(kept)
        known = {pair.id for pair in (*self.all_pairs(), *self.all_rewrites())}
        foreign = sorted((struck | kept) - known)
        if foreign:
            raise BadInput(
                f"{len(foreign)} of these pairs are not in {self.folder} (the first: {foreign[0][:12]}…); "
                "strikes belong to the store whose page they were made on"
            )
        with lock(self.folder, WAIT):
            before = self.struck_ids()
            after = before - kept | struck
            text = json.dumps({"format": 1, "struck": sorted(after)}, indent=1) + "\n"
            write_whole(self.folder / STRIKES, text)
        return len(after - before), len(before - after)

    def statistics(self) -> dict[str, Any]:
        """Counts, margins and mean scores of the store, as a JSON object."""
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
        """Those of `recorded` to learn from: of `reward` or of all rewards, not struck, not contradicted by
        another of them. Each comparison is returned once."""
        struck, reward = self.struck_ids(), reward and canonical_reward_name(reward)
        # Struck pairs are left out first: they contradict no other pair.
        ids = {
            pair.id: pair
            for pair in reversed(recorded)
            if reward in (None, pair.reward) and pair.id not in struck
        }
        return [pair for pair in recorded if ids.get(pair.id) is pair and pair.opposite not in ids]

    def _add(self, name: str, kind: type[P], pairs: Iterable[P]) -> AddedPairs:
        pairs = list(pairs)
        if not pairs:
            return AddedPairs(0, 0)
        prepare_folder(self.folder)
        with lock(self.folder, WAIT):  # another process may mine into the same store
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
                # The old lines are copied, not written anew: a newer version may have put more into them.
                before = path.read_bytes() if recorded else b""
                ended = before if before.endswith(b"\n") or not before else before + b"\n"
                write_whole(path, ended + "".join(pair.model_dump_json() + "\n" for pair in fresh).encode())
        return AddedPairs(len(fresh), again)

    def _read(self, name: str, kind: type[P]) -> list[P]:
        path = self.folder / name
        if not path.is_file():
            return []
        found = []
        # Not splitlines, which would also split at Unicode's line separators inside a prompt.
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
    """The stored name of a picture (H, W, 3) in 0..1: a hash of its size and 8-bit pixels."""
    pixels = image.detach().float().clamp(0, 1).mul(255).round().byte().cpu().contiguous()
    return Cache.key("picture", *pixels.shape, hashlib.sha256(pixels.numpy().tobytes()).hexdigest())


def read_strikes(path: Path) -> tuple[list[str], list[str]]:
    """(struck ids, kept ids) of a strikes file, the store's own or one its page saved. Raises BadInput."""
    try:
        found = parse_json(path.read_bytes())
        struck, kept = found["struck"], found.get("kept", [])
        lists = isinstance(struck, list) and isinstance(kept, list)
        if found["format"] != 1 or not lists or not all(isinstance(one, str) for one in struck + kept):
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
