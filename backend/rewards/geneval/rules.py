"""GenEval's rules: what detections say about a prompt's picture.

Source: GenEval (arXiv 2310.11513), github.com/djghosh13/geneval at af4902f: `evaluate` of
`evaluation/evaluate_images.py`, followed line by line. Of each class the most confident detections above the
threshold count, at most 16; colour and position are checked on as many of them as were asked for; everything
included must be there, nothing excluded may be. The offset between two centres, less a margin, is divided by
its length BEFORE that margin (the ShapeWorld judge divides by the length after it).
Departs from it: there is a soft score, and faults are phrased for a rewriter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...shapeworld.prompts import RELATIONS
from .prompts import GenEvalCase, GenEvalRequirement, plural

THRESHOLD = 0.3  # minimum confidence of a detection, exclusive
COUNTING_THRESHOLD = 0.9  # the same in the counting task
MIN_CONFIDENCE = 0.1  # minimum confidence of detections that count in the soft score, exclusive
MAX_DETECTIONS = 16  # detections of a class that count
MARGIN = 0.1  # share of the two boxes' summed sizes, subtracted from the offset of their centres
COMPONENT = 0.5  # minimum component of that offset in the requested direction, exclusive
MIN_OFFSET = 1e-3  # pixels; a smaller offset counts as 0
WRONG_COLOR = 0.35  # credit for the right thing in a wrong colour


@dataclass(frozen=True)
class ObjectDetection:
    """One detected object.

    `box` is (left, top, right, bottom) in pixels, right and bottom exclusive. `colors` is the probability of
    each of COLORS; None if the colours were not classified.
    """

    name: str
    confidence: float
    box: tuple[float, float, float, float]
    colors: Mapping[str, float] | None = None

    @property
    def color(self) -> str:
        assert self.colors is not None, f"the colours of this {self.name} were not classified"
        return max(self.colors, key=self.colors.__getitem__)


def threshold_of(case: GenEvalCase) -> float:
    """The minimum confidence of detections for this case."""
    return COUNTING_THRESHOLD if case.tag == "counting" else THRESHOLD


def most_confident(
    detections: Sequence[ObjectDetection], name: str, threshold: float = MIN_CONFIDENCE
) -> list[ObjectDetection]:
    """A class's detections above the threshold, most confident first, at most MAX_DETECTIONS."""
    found = [d for d in detections if d.name == name and d.confidence > threshold]
    return sorted(found, key=lambda d: -d.confidence)[:MAX_DETECTIONS]


def component(a: ObjectDetection, b: ObjectDetection, relation: str) -> float:
    """How far `a` lies from `b` in the direction `relation`, -1..1; 0 if the margin leaves nothing."""
    offsets, rest = [], []
    for low, high in ((0, 2), (1, 3)):  # across, down
        offset = (a.box[low] + a.box[high] - b.box[low] - b.box[high]) / 2
        sizes = abs(a.box[high] - a.box[low]) + abs(b.box[high] - b.box[low])
        offsets.append(offset)
        rest.append(math.copysign(max(abs(offset) - MARGIN * sizes, 0.0), offset))
    if max(map(abs, rest)) < MIN_OFFSET:
        return 0.0
    right, down = RELATIONS[relation]
    return (rest[0] * right + rest[1] * down) / math.hypot(*offsets)


def is_right(case: GenEvalCase, detections: Sequence[ObjectDetection]) -> bool:
    """GenEval's verdict: no faults."""
    return not faults(case, detections)


def faults(case: GenEvalCase, detections: Sequence[ObjectDetection]) -> list[str]:
    """Short phrases, one per fault; empty if the picture is right."""
    wrong: list[str] = []
    matched: list[list[ObjectDetection]] = []  # the detections of each requirement; empty if it is not met
    for need in case.include:
        everything = most_confident(detections, need.name, threshold_of(case))
        found, before = everything[: need.count], len(wrong)
        if len(found) < need.count:
            wrong.append(_too_few(need, len(found)))
        elif need.color and any(d.color != need.color for d in found):
            wrong.append(_miscolored(need, found))
        elif need.position:
            relation, index = need.position
            # If the other thing is missing or has a wrong colour, that fault is already listed.
            pairs = itertools.product(found, matched[index])
            if any(component(a, b, relation) <= COMPONENT for a, b in pairs):
                wrong.append(f"the {need} is not {relation} the {case.include[index]}")
        matched.append(found if len(wrong) == before else [])
    for name, too_many in case.exclude:
        seen = len(most_confident(detections, name, threshold_of(case)))
        if seen >= too_many:
            wrong.append(f"I see {_number_of(seen, name)}, {_asked(too_many - 1)}")
    return wrong


def _number_of(count: int, name: str) -> str:
    return f"{count or 'no'} {name if count == 1 else plural(name)}"


def _asked(count: int) -> str:
    return f"{count or 'none'} {'was' if count == 1 else 'were'} asked for"


def _too_few(need: GenEvalRequirement, found: int) -> str:
    if need.count == 1:
        return f"there is no {need}"
    return f"I see {_number_of(found, need.name)}, {_asked(need.count)}"


def _miscolored(need: GenEvalRequirement, found: Sequence[ObjectDetection]) -> str:
    if need.count == 1:
        return f"the {need.name} is {found[0].color}, not {need.color}"
    right = sum(d.color == need.color for d in found)
    verb = "is" if right == 1 else "are"
    return f"{right or 'none'} of the {need.count} {plural(need.name)} {verb} {need.color}"


def soft_score(case: GenEvalCase, detections: Sequence[ObjectDetection]) -> float:
    """Half the strict verdict, half the mean credit over all requirements: 0..1, above .5 exactly if the
    picture is right.

    A thing's credit is its confidence, reduced if its colour is unlikely; one thing too many takes off a
    third. A position's credit is the lower confidence of its two things, reduced the farther they are from
    the relation.
    """
    credits = []
    for need in case.include:
        found = most_confident(detections, need.name)
        worth = [d.confidence * _color_credit(need, d) for d in found[: need.count]]
        limit = min((count for name, count in case.exclude if name == need.name), default=math.inf)
        surplus = max(len(most_confident(detections, need.name, threshold_of(case))) - limit + 1, 0)
        credits.append(sum(worth) / need.count / (1 + 0.5 * surplus))
        if need.position:
            relation, index = need.position
            other = most_confident(detections, case.include[index].name)
            if not (found and other):
                credits.append(0.0)
                continue
            held = min(1.0, (component(found[0], other[0], relation) + 1) / (1 + COMPONENT))
            credits.append(held * min(found[0].confidence, other[0].confidence))
    for name, count in case.exclude:
        if all(need.name != name for need in case.include):
            credits.append(1.0 if len(most_confident(detections, name, threshold_of(case))) < count else 0.0)
    return 0.5 * is_right(case, detections) + 0.5 * sum(credits) / len(credits)


def _color_credit(need: GenEvalRequirement, seen: ObjectDetection) -> float:
    if need.color is None:
        return 1.0
    assert seen.colors is not None
    return WRONG_COLOR + (1 - WRONG_COLOR) * seen.colors[need.color]
