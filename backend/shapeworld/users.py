"""Prompts of ShapeWorld's users, and how practised users write the same: data for training a refiner."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .prompts import sample_layout, sample_prompts
from .scenes import Scene
from .styles import Style, detailed_prompt, random_style


@dataclass(frozen=True)
class PractisedPrompt:
    """A user's prompt, a practised user's version of it, and the scene and style that version is about."""

    prompt: str
    system: str
    scene: Scene
    style: Style


def practised_prompts(per_task: int, per_prompt: int, seed: int = 0) -> Iterator[PractisedPrompt]:
    """`per_prompt` practised versions of up to `per_task` prompts per task, from the train split.

    Layouts and styles are random, as if each version came from another user. Only a preference reward can
    tell which styles suit the prompt.
    """
    rng = random.Random(seed)
    for case in sample_prompts("train", per_task, seed):
        for _ in range(per_prompt):
            scene, style = sample_layout(case, rng), random_style(rng)
            yield PractisedPrompt(case.prompt, detailed_prompt(case.prompt, scene, style, rng), scene, style)
