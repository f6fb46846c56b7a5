"""Drawing scenes: four-fold supersampled polygons, the same pixels on every machine."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from .scenes import COLORS, GROUNDS, SIZE, Scene, Thing

SUPERSAMPLE = 4
RING_HOLE = 0.52  # inner radius of a ring, as a share of the outer one


def _star(points: int = 5, inner: float = 0.5) -> list[tuple[float, float]]:
    corners = []
    for i in range(points * 2):
        radius, angle = (1.0 if i % 2 == 0 else inner), math.pi * i / points - math.pi / 2
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return corners


def _heart() -> list[tuple[float, float]]:
    # The classic parametric heart, scaled to the unit box.
    corners = []
    for i in range(64):
        t = 2 * math.pi * i / 64
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((x / 16.0, -(y + 2.5) / 15.0))
    return corners


_ARM = 0.34  # half the width of a cross's arm
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)],
    "star": _star(),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
    "heart": _heart(),
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
}  # fmt: skip


def draw_thing(canvas: ImageDraw.ImageDraw, thing: Thing, fill, hole, scale: float) -> None:
    """Draw one thing; `scale` is canvas pixels per scene pixel, `hole` fills a ring's middle."""
    x, y, r = thing.x * scale, thing.y * scale, thing.radius * scale
    if thing.shape in ("circle", "ring"):
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        if thing.shape == "ring":
            i = r * RING_HOLE
            canvas.ellipse((x - i, y - i, x + i, y + i), fill=hole)
    else:
        canvas.polygon([(x + u * r, y + v * r) for u, v in OUTLINES[thing.shape]], fill=fill)


def draw(scene: Scene) -> np.ndarray:
    """The scene as a picture: (128, 128, 3) uint8."""
    ground = GROUNDS[scene.ground]
    image = Image.new("RGB", (SIZE * SUPERSAMPLE, SIZE * SUPERSAMPLE), ground)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        draw_thing(canvas, thing, COLORS[thing.color], ground, SUPERSAMPLE)
    return np.asarray(image.reduce(SUPERSAMPLE))
