"""Parses a spelled-out rewrite back into a scene, and checks it against its prompt."""

from __future__ import annotations

import re

from .captions import NUMBERS, plural
from .prompts import RELATIONS, PromptCase
from .scenes import COLORS, GROUNDS, PLACES, SHAPES, Scene, Thing, place_center

_PLACE = rf"(?:at|in|on) the (?P<place>{'|'.join(sorted(PLACES, key=len, reverse=True))})"
_ATTRIBUTES = rf"(?:(?P<size>small|large) )?(?P<color>{'|'.join(COLORS)}) "
_ONE = re.compile(rf"an? {_ATTRIBUTES}(?P<shape>{'|'.join(SHAPES)}) {_PLACE}$")
_GROUP = re.compile(
    rf"(?P<number>two|three|four) {_ATTRIBUTES}(?P<shape>{'|'.join(map(plural, SHAPES))}): (?P<rest>.+)$"
)
_ONE_OF_GROUP = re.compile(rf"one {_PLACE}$")
_TAIL = re.compile(rf"(?P<body>.+), on an? (?P<ground>{'|'.join(GROUNDS)}) background\.?$")
_HEAD = re.compile(rf"(?P<ground>{'|'.join(GROUNDS)}) background, (?P<body>.+?)\.?$")


def read_back(rewrite: str) -> Scene | None:
    """The scene that a spelled-out rewrite describes, with things at the centres of their places.

    None if any part of the text cannot be parsed.
    """
    whole = _TAIL.match(rewrite) or _HEAD.match(rewrite)
    if not whole:
        return None
    body = whole["body"].removeprefix("a photo of ")
    group = _GROUP.match(body)
    parts = re.split(r", | and ", group["rest"] if group else body)
    found = [(_ONE_OF_GROUP if group else _ONE).match(part) for part in parts]
    things = []
    for match in found:
        if match is None:
            return None
        named = group or match
        shape = next(s for s in SHAPES if named["shape"] in (s, plural(s)))
        radius = 10.0 if named["size"] == "small" else 14.5
        things.append(Thing(shape, named["color"], *place_center(match["place"]), radius))
    if group and NUMBERS[len(things)] != group["number"]:
        return None
    return Scene(whole["ground"], tuple(things))


def satisfies(case: PromptCase, rewrite: str) -> bool:
    """Whether the rewrite describes exactly what `case` asks for.

    Counts are exact, no two things share a place, and a relation's component is more than half of the
    distance (GenEval's rule).
    """
    scene = read_back(rewrite)
    if scene is None or (case.ground and scene.ground != case.ground):
        return False
    if len({(t.x, t.y) for t in scene.things}) < len(scene.things):
        return False
    left = list(scene.things)
    chosen: list[list[Thing]] = []
    # Requirements with a colour are matched first, so that one without does not take their things.
    for need in sorted(case.include, key=lambda need: need.color is None):
        fitting = [t for t in left if t.shape == need.shape and need.color in (None, t.color)][: need.count]
        if len(fitting) < need.count:
            return False
        left = [t for t in left if t not in fitting]
    if left:
        return False
    for need in case.include:
        chosen.append([t for t in scene.things if t.shape == need.shape and need.color in (None, t.color)])
        if need.position and not _holds(need.position[0], chosen[-1][0], chosen[need.position[1]][0]):
            return False
    return True


def _holds(relation: str, thing: Thing, other: Thing) -> bool:
    across, down = thing.x - other.x, thing.y - other.y
    along = across * RELATIONS[relation][0] + down * RELATIONS[relation][1]
    return along > 0.5 * (across**2 + down**2) ** 0.5
