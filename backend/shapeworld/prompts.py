"""GenEval-style prompts about ShapeWorld: six tasks, metadata, disjoint train and held-out splits.

Source: GenEval (Ghosh et al. 2023, arXiv 2310.11513): tasks, form of the metadata, and the wording "a photo
of …". Departs from it: shapes instead of COCO classes; a prompt may ask for a ground (" on a grey
background"), which the detector checks too.

The split is by combination, whatever the ground and the order of words. A combination is a pair of shapes, a
(number, shape), a (colour, shape), a relation between two shapes, or a pair of (colour, shape). Each one is
either in train or held out.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..core.errors import BadInput
from .captions import NUMBERS, article, noun_phrase, plural
from .scenes import COLORS, GROUNDS, PLACES, SHAPES, Scene, place_center, place_thing

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attribution")
SPLITS = ("train", "held-out")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
HELD_OUT_SHARE = 0.34


@dataclass(frozen=True)
class Requirement:
    """One `include` entry of GenEval's metadata: `count` things of `shape`, optionally with a colour.

    `position` is (relation, index of the requirement it is relative to).
    """

    shape: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None

    def metadata(self) -> dict[str, Any]:
        """The entry in GenEval's JSON lines."""
        out: dict[str, Any] = {"class": self.shape, "count": self.count}
        if self.color:
            out["color"] = self.color
        if self.position:
            out["position"] = list(self.position)
        return out

    def __str__(self) -> str:
        words = [self.color, self.shape] if self.color else [self.shape]
        if self.count == 1:
            return noun_phrase(*words)
        return " ".join([NUMBERS[self.count], *words[:-1], plural(self.shape)])


@dataclass(frozen=True)
class PromptCase:
    """A prompt and the requirements on its picture."""

    prompt: str
    task: str
    include: tuple[Requirement, ...]
    ground: str | None = None
    key: str = field(default="", compare=False)  # the combination, by which the splits are made

    @property
    def exact(self) -> bool:
        """Whether a surplus thing is a fault: true for a single requirement with a number."""
        return len(self.include) == 1 and self.include[0].count > 1

    def metadata(self) -> dict[str, Any]:
        """A line of GenEval's metadata, plus `ground` if the prompt asks for one."""
        out: dict[str, Any] = {"tag": self.task, "include": [r.metadata() for r in self.include]}
        if self.exact:  # GenEval counts exactly: one more is too many
            first = self.include[0]
            out["exclude"] = [{"class": first.shape, "count": first.count + 1}]
        if self.ground:
            out["ground"] = self.ground
        return {**out, "prompt": self.prompt}


def _held_out(keys: set[str]) -> set[str]:
    """A fixed third of a task's combinations, in the order of their hashes."""
    ranked = sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())
    return set(ranked[: round(len(ranked) * HELD_OUT_SHARE)])


def _combinations(task: str):
    """Yields (key, text, requirements) of every combination of a task; both word orders share a key."""
    if task == "single_object":
        for shape in SHAPES:
            yield shape, noun_phrase(shape), (Requirement(shape),)
    elif task == "two_object":
        for a, b in itertools.permutations(SHAPES, 2):
            needs = (Requirement(a), Requirement(b))
            yield f"{min(a, b)}+{max(a, b)}", f"{noun_phrase(a)} and {noun_phrase(b)}", needs
    elif task == "counting":
        for number, shape in itertools.product((2, 3, 4), SHAPES):
            need = Requirement(shape, number)
            yield f"{number} {shape}", str(need), (need,)
    elif task == "colors":
        for color, shape in itertools.product(COLORS, SHAPES):
            yield f"{color} {shape}", noun_phrase(color, shape), (Requirement(shape, color=color),)
    elif task == "position":
        for (a, b), relation in itertools.product(itertools.permutations(SHAPES, 2), RELATIONS):
            forward, backward = f"{a} {relation} {b}", f"{b} {_INVERSE[relation]} {a}"
            needs = (Requirement(b), Requirement(a, position=(relation, 0)))
            yield min(forward, backward), f"{noun_phrase(a)} {relation} {noun_phrase(b)}", needs
    else:
        kinds = list(itertools.product(COLORS, SHAPES))
        for (c, a), (d, b) in itertools.permutations(kinds, 2):
            if c != d and a != b:  # GenEval asks for two classes in two colours
                key = "+".join(sorted((f"{c} {a}", f"{d} {b}")))
                needs = (Requirement(a, color=c), Requirement(b, color=d))
                yield key, f"{noun_phrase(c, a)} and {noun_phrase(d, b)}", needs


@cache
def prompts(split: str) -> tuple[PromptCase, ...]:
    """All prompts of a split ("train" or "held-out"), task by task. Raises BadInput for another split.

    Single objects are split by (shape, ground): there are only eight shapes, and renderer and rewriter must
    learn all of them.
    """
    if split not in SPLITS:
        raise BadInput(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    cases = []
    for task in TASKS:
        of_task = []
        for key, text, needs in _combinations(task):
            for ground in (None, *GROUNDS):
                combination = f"{task}: {key} / {ground}" if task == "single_object" else f"{task}: {key}"
                tail = f" on {article(ground)} {ground} background" if ground else ""
                of_task.append(PromptCase(f"a photo of {text}{tail}", task, needs, ground, combination))
        held_out = _held_out({case.key for case in of_task})
        cases += [case for case in of_task if (case.key in held_out) == (split == "held-out")]
    return tuple(cases)


def sample_prompts(split: str, per_task: int, seed: int = 0) -> list[PromptCase]:
    """Up to `per_task` different prompts per task, spread over the task's combinations."""
    rng, chosen = random.Random(seed), []
    for task in TASKS:
        cases = [case for case in prompts(split) if case.task == task]
        rng.shuffle(cases)
        by_key: dict[str, list[PromptCase]] = {}
        for case in cases:
            by_key.setdefault(case.key, []).append(case)
        rounds = itertools.zip_longest(*by_key.values())
        chosen += [c for c in itertools.chain.from_iterable(rounds) if c is not None][:per_task]
    return chosen


def sample_layout(case: PromptCase, rng: random.Random, size: str | None = "large") -> Scene:
    """A random scene that satisfies `case`; colours that it does not name are random."""
    kinds: list[tuple[str, str]] = []
    taken = [need.color for need in case.include if need.color]
    for need in case.include:
        # Requirements without a colour get different colours, which are easier to tell apart.
        free = [color for color in COLORS if color not in taken]
        color = need.color or rng.choice(free)
        taken.append(color)
        kinds += [(need.shape, color)] * need.count
    while True:
        places = rng.sample(PLACES, len(kinds))
        if all(_related(case, places, i) for i in range(len(case.include))):
            break
    things = tuple(place_thing(rng, *kind, place, size) for kind, place in zip(kinds, places, strict=True))
    return Scene(case.ground or rng.choice(tuple(GROUNDS)), things)


def _related(case: PromptCase, places: list[str], index: int) -> bool:
    need = case.include[index]
    if need.position is None:
        return True
    relation, other = need.position
    (x, y), (u, v) = place_center(places[index]), place_center(places[other])
    right, down = RELATIONS[relation]
    along, across = ((x - u) * right, y - v) if right else ((y - v) * down, x - u)
    return along > 0 and abs(across) < along * 0.6  # clearly in that direction, not diagonal


_NUMBER_WORDS = {word: n for n, word in NUMBERS.items()} | {str(n): n for n in NUMBERS} | {"a": 1, "an": 1}
_SINGULAR = {plural(shape): shape for shape in SHAPES} | {shape: shape for shape in SHAPES}
_THING = re.compile(
    r"\b(?:(?P<count>an?|one|two|three|four|[1-4])\s+)?(?:(?:small|large|big|tiny)\s+)?"
    rf"(?:(?P<color>{'|'.join(COLORS)})\s+)?(?P<shape>{'|'.join(sorted(_SINGULAR, key=len, reverse=True))})\b"
)
_RELATION = re.compile(r"\b(?P<relation>left of|right of|above|over|below|under|beneath)\b")
_SYNONYMS = {"over": "above", "under": "below", "beneath": "below"}


def parse_prompt(prompt: str) -> PromptCase:
    """Parses a prompt about ShapeWorld, in GenEval's wording or a short form of it.

    Raises BadInput if it names no shape: the embedded judge cannot check such a prompt.
    """
    text = re.sub(r"\s+", " ", prompt.lower().replace("gray", "grey"))
    found = list(_THING.finditer(text))
    if not found:
        raise BadInput(
            f"the ShapeWorld judge can only check prompts that name one of its shapes ({', '.join(SHAPES)}); "
            f"got {prompt[:80]!r}; use another --judge for other pictures"
        )
    needs = []
    for match in found:
        word = match["count"]
        count = _NUMBER_WORDS[word] if word else (1 if match["shape"] in SHAPES else 2)
        needs.append(Requirement(_SINGULAR[match["shape"]], count, match["color"]))
    relation = _RELATION.search(text, found[0].end(), found[1].start()) if len(found) == 2 else None
    ground = re.search(rf"\b({'|'.join(GROUNDS)}) (?:back)?ground\b", text)
    if relation:
        name = _SYNONYMS.get(relation["relation"], relation["relation"])
        first, second = needs
        needs = [second, Requirement(first.shape, first.count, first.color, (name, 0))]
    return PromptCase(prompt, _task(needs), tuple(needs), ground[1] if ground else None)


def _task(needs: list[Requirement]) -> str:
    if any(need.position for need in needs):
        return "position"
    if len(needs) == 1:
        return "counting" if needs[0].count > 1 else "colors" if needs[0].color else "single_object"
    return "color_attribution" if any(need.color for need in needs) else "two_object"
