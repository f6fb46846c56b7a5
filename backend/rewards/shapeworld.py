"""The ShapeWorld detector as a reward: GenEval's verdict, strict and soft, and a critique in words.

Source: GenEval (arXiv 2310.11513) and its evaluation script's rules, as in its paper: every included
object present, colours right, the position's unit-vector component > .5 after a margin of .1 x the
sum of sizes, exact counts for the counting task.
Departs from it: a requested ground (background colour) is checked too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.types import RewardSpec, Verdict
from ..shapeworld.captions import plural
from ..shapeworld.detector import Detection, Reading, read_scene
from ..shapeworld.prompts import RELATIONS, PromptCase, Requirement, parse_prompt
from .base import BaseReward

if TYPE_CHECKING:
    from torch import Tensor

MARGIN = 0.1  # share of the two boxes' summed sizes; offsets within it count as 0
COMPONENT = 0.5  # minimum component of the offset's unit vector in the requested direction, exclusive
WRONG_COLOR = 0.35  # credit for the right shape in the wrong colour


class ShapeWorldSoft(BaseReward):
    """0..1, higher is better. Right pictures score .5 to 1, wrong ones 0 to .5 by how much of them is
    right."""

    spec = RewardSpec("shapeworld", 0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Images (B, H, W, 3) in 0..1 and GenEval-style prompts -> B scores."""
        return [soft_score(case, reading) for case, reading in _readings(images, prompts)]

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        """The faults of each picture; satisfied if there are none."""
        verdicts = []
        for case, reading in _readings(images, prompts):
            wrong = faults(case, reading)
            verdicts.append(Verdict(not wrong, "; ".join(wrong), tuple(wrong)))
        return verdicts


class ShapeWorldStrict(ShapeWorldSoft):
    """1 if the picture shows everything that the prompt asks for, else 0."""

    spec = RewardSpec("shapeworld-strict", 0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        return [float(is_right(case, reading)) for case, reading in _readings(images, prompts)]


def _readings(images: Tensor, prompts: Sequence[str]) -> list[tuple[PromptCase, Reading]]:
    pictures = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    pairs = zip(pictures, prompts, strict=True)
    return [(parse_prompt(prompt), read_scene(np.ascontiguousarray(picture))) for picture, prompt in pairs]


def is_right(case: PromptCase, reading: Reading) -> bool:
    """GenEval's strict verdict: no faults."""
    return not faults(case, reading)


def component(a: Detection, b: Detection, relation: str) -> float:
    """How far `a` lies from `b` in the direction `relation`, -1..1, after the margin; 0 if nothing is
    left."""
    widths, heights = a.right - a.left + b.right - b.left, a.bottom - a.top + b.bottom - b.top
    offsets = []
    for axis, sizes in enumerate((widths, heights)):
        offset = a.center[axis] - b.center[axis]
        offsets.append(math.copysign(max(abs(offset) - MARGIN * sizes, 0.0), offset))
    length = math.hypot(*offsets)
    if length == 0:
        return 0.0
    right, down = RELATIONS[relation]
    return (offsets[0] * right + offsets[1] * down) / length


def _matching(need: Requirement, reading: Reading) -> list[Detection]:
    """The detections that match a requirement, most confident first."""
    same = [d for d in reading.detections if d.shape == need.shape and need.color in (None, d.color)]
    return sorted(same, key=lambda d: -d.confidence)


def faults(case: PromptCase, reading: Reading) -> list[str]:
    """Short phrases, one per fault; empty if the picture is right."""
    wrong = []
    for need in case.include:
        found = _matching(need, reading)
        if len(found) < need.count or (case.exact and len(found) > need.count):
            wrong.append(_missing(need, found, reading))
        elif need.position:
            relation, index = need.position
            others = _matching(case.include[index], reading)
            held = any(component(a, b, relation) > COMPONENT for a in found for b in others if a is not b)
            if others and not held:
                wrong.append(f"the {_name(need)} is not {relation} the {_name(case.include[index])}")
    if case.ground and reading.ground != case.ground:
        wrong.append(f"the background is {reading.ground}, not {case.ground}")
    return wrong


def _name(need: Requirement) -> str:
    return f"{need.color} {need.shape}" if need.color else need.shape


def _missing(need: Requirement, found: list[Detection], reading: Reading) -> str:
    if need.count > 1:
        noun = need.shape if len(found) == 1 else plural(need.shape)
        color = f"{need.color} " if need.color else ""
        return f"I see {len(found) or 'no'} {color}{noun}, {need.count} were asked for"
    other = [d for d in reading.detections if d.shape == need.shape]
    if need.color and other:
        return f"the {need.shape} is {other[0].color}, not {need.color}"
    return f"there is no {_name(need)}"


def soft_score(case: PromptCase, reading: Reading) -> float:
    """Half the strict verdict, half the mean credit over everything that was asked for."""
    credits = []
    for need in case.include:
        same = [d for d in reading.detections if d.shape == need.shape]
        worth = [d.confidence * (1.0 if need.color in (None, d.color) else WRONG_COLOR) for d in same]
        worth.sort(reverse=True)
        credit = sum(worth[: need.count]) / need.count
        if case.exact and len(same) > need.count:
            credit /= 1 + 0.5 * (len(same) - need.count)
        credits.append(credit)
        if need.position:
            relation, index = need.position
            pairs = [
                component(a, b, relation)
                for a in _matching(need, reading)
                for b in _matching(case.include[index], reading)
                if a is not b
            ]
            credits.append(min(1.0, (max(pairs) + 1) / (1 + COMPONENT)) if pairs else 0.0)
    if case.ground:
        credits.append(reading.ground_confidence * (reading.ground == case.ground))
    return 0.5 * (not faults(case, reading)) + 0.5 * sum(credits) / len(credits)
