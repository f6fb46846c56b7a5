"""Training data of the tiny judge: drawings with questions and answers.

Scenes are exact drawings; wrong ones differ from the right one by a single change.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from ...shapeworld.captions import noun_phrase, spelled_out
from ...shapeworld.detector import Detection, Reading
from ...shapeworld.drawing import draw
from ...shapeworld.prompts import PromptCase, prompts, sample_layout
from ...shapeworld.scenes import COLORS, GROUNDS, PLACES, SHAPES, SIZE, Scene, place_thing, random_scene

DESCRIBE = "Describe this picture."
# Shares of the kinds of questions in the second stage.
KINDS = {"match": 0.4, "part": 0.15, "describe": 0.1, "potential": 0.15, "clarity": 0.05, "critique": 0.15}


def by_task() -> dict[str, list[PromptCase]]:
    """{task: prompts} of the train split."""
    found: dict[str, list[PromptCase]] = {}
    for case in prompts("train"):
        found.setdefault(case.task, []).append(case)
    return found


def perfect_reading(scene: Scene) -> Reading:
    """The reading that a perfect detector would give of a scene."""
    found = [
        Detection(
            t.shape,
            t.color,
            1.0,
            t.x - t.radius,
            t.y - t.radius,
            t.x + t.radius,
            t.y + t.radius,
            int(4 * t.radius**2),
        )
        for t in scene.things
    ]
    return Reading(scene.ground, 1.0, tuple(found))


def corrupt_scene(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one change: a thing of another shape or colour, lost, added or moved, or another ground.

    The change may happen to have no effect. A scene without things gets a random ground.
    """
    things, ground = list(scene.things), scene.ground
    if not things:
        return Scene(rng.choice(tuple(GROUNDS)), ())
    which = rng.randrange(len(things))
    free = [place for place in PLACES if place not in {t.place for t in things}]
    how = rng.choice(("shape", "shape", "color", "color", "lost", "added", "moved", "moved", "ground"))
    if how == "shape":
        things[which] = replace(things[which], shape=rng.choice(SHAPES))
    elif how == "color":
        things[which] = replace(things[which], color=rng.choice(tuple(COLORS)))
    elif how == "lost":
        del things[which]
    elif how == "added" and free:
        like = rng.choice(things)
        things.append(place_thing(rng, like.shape, rng.choice((like.color, *COLORS)), rng.choice(free)))
    elif how == "moved" and len(things) == 2 and rng.random() < 0.6:
        (a, b) = things
        things = [replace(a, x=b.x, y=b.y), replace(b, x=a.x, y=a.y)]
    elif how == "moved" and free:
        things[which] = place_thing(rng, things[which].shape, things[which].color, rng.choice(free))
    else:
        ground = rng.choice(tuple(GROUNDS))
    return Scene(ground, tuple(things))


def sample_example(rng: random.Random, cases: dict[str, list[PromptCase]]) -> tuple[PromptCase, Scene]:
    """(case, scene): in half of all cases the scene is right, in the others it is nearly right."""
    from ...rewards.shapeworld import is_right

    case = rng.choice(cases[rng.choice(tuple(cases))])
    scene, wanted = sample_layout(case, rng, None), rng.random() < 0.5
    if wanted:  # change only what the prompt does not ask for
        other = corrupt_scene(scene, rng)
        return case, other if rng.random() < 0.4 and is_right(case, perfect_reading(other)) else scene
    while is_right(case, perfect_reading(scene)):
        scene = corrupt_scene(scene, rng)
    return case, scene


def sample_part(scene: Scene, rng: random.Random) -> tuple[str, bool]:
    """(phrase for one thing, as in a checklist; whether the scene shows it).

    Often the phrase combines one thing's colour with another's shape.
    """
    first, second, kind = rng.choice(scene.things), rng.choice(scene.things), rng.random()
    if kind < 0.5:
        color, shape = first.color, first.shape
    elif kind < 0.75:
        color, shape = first.color, second.shape
    else:
        color, shape = rng.choice(tuple(COLORS)), rng.choice(SHAPES)
    if rng.random() < 0.3:
        return noun_phrase(shape), any(t.shape == shape for t in scene.things)
    return noun_phrase(color, shape), any((t.color, t.shape) == (color, shape) for t in scene.things)


def degrade(picture: np.ndarray, rng: random.Random, min_strength: float, max_strength: float) -> np.ndarray:
    """The picture, blurred, noisy and pale by a random strength within the limits (0..1)."""
    strength = rng.uniform(min_strength, max_strength)
    image = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(12 * strength))
    pixels = np.asarray(image, dtype=np.float32)
    noise = np.random.default_rng(rng.getrandbits(63)).normal(size=(16, 16, 3)).astype(np.float32)
    coarse = np.stack([np.asarray(Image.fromarray(noise[..., i]).resize((SIZE, SIZE))) for i in range(3)], -1)
    pale = pixels.mean((0, 1)) * strength + pixels * (1 - strength)
    return (pale + 40 * strength * coarse).clip(0, 255).astype(np.uint8)


def sample_batch(
    rng: random.Random, cases: dict[str, list[PromptCase]], count: int
) -> tuple[list, list[Scene]]:
    """(questions with drawings and answers, the drawings' scenes) of a batch of `count`."""
    from ...rewards.shapeworld import faults
    from ...rewards.vlm.questions import CRITIQUE, QUESTIONS
    from ...training.judge.batch import JudgeQuestion

    asks, scenes = [], []
    while len(asks) < count:
        kind = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
        case, scene = sample_example(rng, cases)
        if kind in ("describe", "part"):
            scene = random_scene(rng)
        wrong = faults(case, perfect_reading(scene))
        if kind == "critique" and not wrong:
            continue
        picture = draw(scene)
        if kind == "describe":
            question, answer = DESCRIBE, spelled_out(_row_by_row(scene))
        elif kind == "part":
            phrase, answer = sample_part(scene, rng)
            question = QUESTIONS["match"].format(phrase)
        elif kind == "critique":
            question, answer = CRITIQUE.format(case.prompt), "; ".join(wrong)
        elif kind == "clarity":
            answer = rng.random() < 0.5
            picture = degrade(picture, rng, *((0.0, 0.25) if answer else (0.5, 1.0)))
            question = QUESTIONS[kind].format(case.prompt)
        else:
            picture = degrade(picture, rng, 0.0, 0.4) if kind == "potential" else picture
            question, answer = QUESTIONS[kind].format(case.prompt), not wrong
        asks.append(JudgeQuestion(question, Image.fromarray(picture), answer))
        scenes.append(scene)
    return asks, scenes


def _row_by_row(scene: Scene) -> Scene:
    """The scene with its things ordered row by row, so that there is only one right description."""
    return replace(scene, things=tuple(sorted(scene.things, key=lambda t: PLACES.index(t.place))))
