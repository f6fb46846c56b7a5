"""Scenes of ShapeWorld: coloured shapes on a plain ground.

A scene is the ground truth of a picture of 128 x 128 pixels. x grows to the right, y downwards. A thing's
`radius` is half the side of its bounding box.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SIZE = 128  # pixels, both sides

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 38),
    "orange": (245, 140, 28),
    "yellow": (240, 220, 40),
    "green": (38, 160, 62),
    "cyan": (50, 205, 220),
    "blue": (42, 78, 210),
    "purple": (140, 52, 178),
    "black": (28, 28, 32),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "grey": (168, 170, 174),
    "beige": (232, 214, 184),
    "pink": (250, 200, 212),
}
# Place names of the 3 x 3 grid, row by row.
PLACES: tuple[str, ...] = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
RADII = {"small": (9.5, 11.0), "large": (13.0, 16.0)}  # pixels, minimum and maximum
SIZE_BOUNDARY = 12.0  # pixels; a smaller radius is "small"
JITTER = 3.0  # pixels; maximum offset from a place's centre, which leaves >= 4 pixels between neighbours


@dataclass(frozen=True)
class Thing:
    """One shape. `x`, `y` (its centre) and `radius` in pixels."""

    shape: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def size(self) -> str:
        return "small" if self.radius < SIZE_BOUNDARY else "large"

    @property
    def place(self) -> str:
        column, row = (min(2, max(0, int(v * 3 // SIZE))) for v in (self.x, self.y))
        return PLACES[row * 3 + column]


@dataclass(frozen=True)
class Scene:
    ground: str
    things: tuple[Thing, ...]


def place_center(place: str) -> tuple[float, float]:
    """Pixel centre (x, y) of a named place."""
    row, column = divmod(PLACES.index(place), 3)
    return (column + 0.5) * SIZE / 3, (row + 0.5) * SIZE / 3


def place_thing(rng: random.Random, shape: str, color: str, place: str, size: str | None = None) -> Thing:
    """A thing near the centre of `place`; its size is random if None."""
    size = size or rng.choices(("small", "large"), (0.4, 0.6))[0]
    x, y = (v + rng.uniform(-JITTER, JITTER) for v in place_center(place))
    return Thing(shape, color, x, y, rng.uniform(*RADII[size]))


def random_scene(rng: random.Random) -> Scene:
    """A random scene from the training distribution: 1 to 4 things, alike or mixed."""
    kind = rng.random()
    if kind < 0.25:
        kinds = [_random_kind(rng)]
    elif kind < 0.57:
        kinds = [_random_kind(rng) for _ in range(2)]
    elif kind < 0.82:
        kinds = [_random_kind(rng)] * rng.choices((2, 3, 4), (2, 3, 3))[0]
    else:
        kinds = [_random_kind(rng) for _ in range(rng.choice((3, 4)))]
    places = rng.sample(PLACES, len(kinds))
    # Equal things share a size, so that a caption can name it once.
    shared = rng.choice(("small", "large")) if len(set(kinds)) < len(kinds) else None
    things = tuple(place_thing(rng, *kind, place, shared) for kind, place in zip(kinds, places))
    return Scene(rng.choice(tuple(GROUNDS)), things)


def _random_kind(rng: random.Random) -> tuple[str, str]:
    return rng.choice(SHAPES), rng.choice(tuple(COLORS))
