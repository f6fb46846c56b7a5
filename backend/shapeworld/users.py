"""What users of ShapeWorld type, and what practised users type to get it: a log to learn refinement from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .prompts import sample_layout, sample_prompts
from .scenes import Scene
from .styles import Style, detailed_prompt, random_style


@dataclass(frozen=True)
class PractisedPrompt:
    """A user's prompt, what a practised one made of it, and what that one had in mind."""

    prompt: str
    system: str
    scene: Scene
    style: Style


def practised_prompts(per_task: int, per_prompt: int, seed: int = 0) -> Iterator[PractisedPrompt]:
    """`each` of them for up to `per_task` prompts of each task, training split.

    Every practised user has a layout and a taste of their own: styles are random, and only a preference
    reward can tell which suit the prompt.
    """
    rng = random.Random(seed)
    for case in sample_prompts("train", per_task, seed):
        for _ in range(per_prompt):
            scene, style = sample_layout(case, rng), random_style(rng)
            yield PractisedPrompt(case.prompt, detailed_prompt(case.prompt, scene, style, rng), scene, style)
