"""Captions of scenes: spelled out like a careful description, or loose like alt text.

The renderer is trained on these captions. Most spell the scene out: size, colour, shape and place of every
thing, and the ground. A small share is loose: things and attributes are left out, numbers become "several",
relations are rarely named. This is why the renderer is weak on terse prompts, as real backbones are; no
caption is wrong on purpose.
"""

from __future__ import annotations

import random
from collections import Counter

from .scenes import Scene, Thing

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
PLURALS = {"cross": "crosses"}


def plural(shape: str) -> str:
    return PLURALS.get(shape, shape + "s")


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def noun_phrase(*words: str) -> str:
    return f"{article(words[0])} {' '.join(words)}"


def place_phrase(place: str, rng: random.Random | None = None) -> str:
    if place == "center":
        return "in the center"
    if place in ("left", "right"):
        return f"on the {place}"
    # "at the top left" and "in the top left" are both common.
    if " " in place and rng is not None and rng.random() < 0.3:
        return f"in the {place}"
    return f"at the {place}"


def join_list(parts: list[str], rng: random.Random | None = None) -> str:
    if len(parts) == 1:
        return parts[0]
    if rng is not None and rng.random() < 0.3:
        return ", ".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def spelled_out(scene: Scene, rng: random.Random | None = None) -> str:
    """A complete description of the scene. Without `rng`, the canonical wording."""

    def chance(p: float) -> bool:
        return rng is not None and rng.random() < p

    things = list(scene.things)
    if rng is not None:
        rng.shuffle(things)
    kinds = Counter((t.size, t.color, t.shape) for t in things)
    if len(kinds) == 1 and len(things) > 1 and not chance(0.4):
        first = things[0]
        words = [first.size, first.color] if not chance(0.3) else [first.color]
        group = f"{NUMBERS[len(things)]} {' '.join(words)} {plural(first.shape)}"
        listed = join_list([f"one {place_phrase(t.place, rng)}" for t in things], rng)
        body = f"{group}: {listed}"
    else:
        body = join_list([_spell_thing(t, rng, chance(0.3)) for t in things], rng)
    if chance(0.25):
        body = "a photo of " + body
    if chance(0.2):
        return f"{scene.ground} background, {body}"
    return f"{body}, on {article(scene.ground)} {scene.ground} background"


def _spell_thing(thing: Thing, rng: random.Random | None, without_size: bool) -> str:
    words = ([] if without_size else [thing.size]) + [thing.color, thing.shape]
    return f"{noun_phrase(*words)} {place_phrase(thing.place, rng)}"


def loose_caption(scene: Scene, rng: random.Random) -> str:
    """What alt-text says of the scene: true, but incomplete."""
    counts = Counter((t.color, t.shape) for t in scene.things)
    parts = []
    for (color, shape), n in counts.items():
        if len(counts) > 1 and parts and rng.random() < 0.4:
            continue  # not mentioned
        words = [color] if rng.random() < 0.6 else []
        if n == 1:
            parts.append(noun_phrase(*words, shape))
        else:
            number = NUMBERS[n] if rng.random() < 0.2 else rng.choice(("several", "some", "a few"))
            parts.append(" ".join([number, *words, plural(shape)]))
    text = join_list(parts, rng)
    if len(parts) == len(scene.things) == 2 and rng.random() < 0.2:
        text = f"{parts[0]} {_relation(*scene.things)} {parts[1]}"
    if rng.random() < 0.6:
        text = rng.choice(("a photo of ", "a picture of ", "an image with ")) + text
    if rng.random() < 0.3:
        text += f" on {article(scene.ground)} {scene.ground} background"
    return text


def _relation(a: Thing, b: Thing) -> str:
    if abs(a.x - b.x) > abs(a.y - b.y):
        return "left of" if a.x < b.x else "right of"
    return "above" if a.y < b.y else "below"


def training_caption(scene: Scene, rng: random.Random, empty: float = 1 / 12, incomplete: float = 0.2) -> str:
    """A caption from a renderer's training distribution.

    It is empty with probability `empty` (for guidance), empty or loose with probability `incomplete`, and
    else spelled out.
    """
    kind = rng.random()
    if kind < empty:
        return ""
    return loose_caption(scene, rng) if kind < incomplete else spelled_out(scene, rng)
