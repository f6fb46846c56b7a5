"""Prompts for rewriting examples: cases of the train split, richer cases, and paraphrases."""

from __future__ import annotations

import random
import re
from functools import cache

from .captions import NUMBERS, article, join_list
from .prompts import RELATIONS, TASKS, PromptCase, Requirement, prompts
from .scenes import COLORS, GROUNDS, SHAPES


@cache
def _train_cases() -> dict[str, dict[str, list[PromptCase]]]:
    """{task: {combination: its prompts, one per ground}}."""
    found: dict[str, dict[str, list[PromptCase]]] = {task: {} for task in TASKS}
    for case in prompts("train"):
        found[case.task].setdefault(case.key, []).append(case)
    return found


@cache
def _keys(task: str) -> tuple[str, ...]:
    return tuple(_train_cases()[task])


def train_case(rng: random.Random, task: str | None = None) -> PromptCase:
    task = task or rng.choice(TASKS)
    cases = _train_cases()[task][rng.choice(_keys(task))]
    plain = [case for case in cases if case.ground is None]
    return plain[0] if plain and rng.random() < 0.4 else rng.choice(cases)


def _known(task: str, key: str) -> bool:
    return f"{task}: {key}" in _train_cases()[task]


def richer_case(rng: random.Random) -> PromptCase:
    """A random case that the six tasks do not have: coloured counts, coloured relations, a group beside a
    thing, or three things."""
    while True:
        needs = _richer_needs(rng)
        if needs is not None and sum(need.count for need in needs) <= 4:
            ground = rng.choice(tuple(GROUNDS)) if rng.random() < 0.4 else None
            tail = f" on {article(ground)} {ground} background" if ground else ""
            return PromptCase(f"a photo of {requirements_phrase(needs)}{tail}", "richer", needs, ground)


def _richer_needs(rng: random.Random) -> tuple[Requirement, ...] | None:
    kind = rng.randrange(4)
    a, b, c = rng.sample(SHAPES, 3)
    red, blue = rng.sample(tuple(COLORS), 2)
    number = rng.choice((2, 3, 4))
    together = _known("two_object", f"{min(a, b)}+{max(a, b)}")
    counted = _known("counting", f"{number} {a}")
    if kind == 0 and counted and _known("colors", f"{red} {a}"):
        return (Requirement(a, number, red),)
    if kind == 1 and _known("color_attribution", "+".join(sorted((f"{red} {a}", f"{blue} {b}")))):
        relation = rng.choice(tuple(RELATIONS))
        if any(_known("position", key) for key in _position_keys(a, relation, b)):
            return (Requirement(b, color=blue), Requirement(a, color=red, position=(relation, 0)))
    if kind == 2 and counted and together and number < 4:
        coloured = all(_known("colors", key) for key in (f"{red} {a}", f"{blue} {b}")) and rng.random() < 0.4
        colors = (red, blue) if coloured else (None, None)
        return (Requirement(a, number, colors[0]), Requirement(b, color=colors[1]))
    if kind == 3 and together and all(_known("two_object", f"{min(s, c)}+{max(s, c)}") for s in (a, b)):
        return (Requirement(a), Requirement(b), Requirement(c))
    return None


def _position_keys(a: str, relation: str, b: str) -> tuple[str, str]:
    inverse = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    return f"{a} {relation} {b}", f"{b} {inverse[relation]} {a}"


FRAMES = (
    "{}",
    "{}",
    "{}",
    "{}",
    "{}",
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "an image with {}",
    "a drawing of {}",
    "an illustration of {}",
    "draw {}",
    "please draw {}",
    "{} please",
    "show me {}",
    "paint {}",
    "make a picture of {}",
    "I want {}",
    "i would like {}",
    "photo of {}",
    "picture: {}",
)
_GROUND_FRAMES = (
    "{0} on a {1} background",
    "{0} on a {1} background",
    "{0} on {1}",
    "{0}, {1} background",
    "{0} with a {1} background",
    "{0} in front of a {1} background",
    "{1} background, {0}",
)
_RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath", "underneath"),
}


def paraphrase(case: PromptCase, rng: random.Random) -> str:
    """A paraphrase of the case's prompt as a user might type it: shorter, more casual or more polite."""
    text = requirements_phrase(case.include, rng)
    if rng.random() < 0.4:
        text = re.sub(r"\b(a|an) ", "", text)
    text = rng.choice(FRAMES).format(text)
    if case.ground:
        text = rng.choice(_GROUND_FRAMES).format(text, case.ground)
        text = text.replace("grey", "gray") if rng.random() < 0.2 else text
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    return text + (rng.choice((".", "!", " ")) if rng.random() < 0.15 else "")


def requirements_phrase(needs: tuple[Requirement, ...], rng: random.Random | None = None) -> str:
    names = [str(need) for need in needs]
    if rng is not None and rng.random() < 0.3:
        for word, number in ((NUMBERS[n], str(n)) for n in (2, 3, 4)):
            names = [re.sub(rf"\b{word}\b", number, name) for name in names]
    if len(needs) == 2 and needs[1].position:
        relation = needs[1].position[0]
        said = relation if rng is None else rng.choice(_RELATION_WORDS[relation])
        return f"{names[1]} {said} {names[0]}"
    if len(needs) == 2 and rng is not None and rng.random() < 0.25:
        return rng.choice(("{} with {}", "{}, {}", "{} & {}", "{} next to {}")).format(*names)
    return join_list(names)
