"""Draws scenes as polygons with four-fold supersampling: the same pixels on every machine."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from .scenes import GROUNDS, SIZE, Scene, Thing
from .styles import PLAIN_STYLE, Style, palette_colors

SUPERSAMPLE = 4
LINE = 2.5  # pixels; width of the outline around a thing
OUTLINE = (34, 26, 40)  # colour
SHADOW, SHADOW_OFFSET = 0.7, 3.5  # factor on the ground's colour; pixels to the right and down
FRAME, FRAME_WIDTH = (120, 72, 40), 4  # colour; pixels
DOT, DOT_RADIUS, DOT_STEP = 0.75, 2.5, 16  # factor on the ground's colour; pixels; pixels
# Offset (x, y) of a thing's reflection from its centre, and the reflection's radius, as shares of its radius.
GLOSS = {
    "circle": (-0.35, -0.35, 0.24),
    "square": (-0.4, -0.4, 0.24),
    "triangle": (-0.1, 0.2, 0.24),
    "star": (0.0, 0.0, 0.22),
    "cross": (0.0, 0.0, 0.24),
    "ring": (-0.54, -0.54, 0.17),
    "heart": (-0.4, -0.3, 0.24),
    "diamond": (-0.1, -0.2, 0.22),
}
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
        (-_ARM, -1),
        (_ARM, -1),
        (_ARM, -_ARM),
        (1, -_ARM),
        (1, _ARM),
        (_ARM, _ARM),
        (_ARM, 1),
        (-_ARM, 1),
        (-_ARM, _ARM),
        (-1, _ARM),
        (-1, -_ARM),
        (-_ARM, -_ARM),
    ],
    "heart": _heart(),
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
}


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


def draw(scene: Scene, style: Style = PLAIN_STYLE) -> np.ndarray:
    """The scene as a picture: (128, 128, 3) uint8."""
    ground, colors = GROUNDS[scene.ground], palette_colors(style.palette)
    image = Image.new("RGB", (SIZE * SUPERSAMPLE, SIZE * SUPERSAMPLE), ground)
    canvas = ImageDraw.Draw(image)
    if style.background:
        _draw_background(canvas, style.background, ground)
    if style.outline == "shadowed":
        shade = tuple(round(value * SHADOW) for value in ground)
        for thing in scene.things:
            moved = replace(thing, x=thing.x + SHADOW_OFFSET, y=thing.y + SHADOW_OFFSET)
            draw_thing(canvas, moved, shade, ground, SUPERSAMPLE)
    for thing in scene.things:
        if style.outline == "outlined":
            _draw_outline(canvas, thing, SUPERSAMPLE)
        draw_thing(canvas, thing, colors[thing.color], ground, SUPERSAMPLE)
        if style.outline == "outlined" and thing.shape == "ring":
            x, y, r = (v * SUPERSAMPLE for v in (thing.x, thing.y, thing.radius * RING_HOLE))
            inner = round(LINE * SUPERSAMPLE * 0.6)
            canvas.ellipse((x - r, y - r, x + r, y + r), outline=OUTLINE, width=inner)
        if style.texture == "glossy":
            _draw_gloss(canvas, thing, SUPERSAMPLE)
    return np.asarray(image.reduce(SUPERSAMPLE))


def _draw_background(canvas: ImageDraw.ImageDraw, name: str, ground: tuple[int, int, int]) -> None:
    end = SIZE * SUPERSAMPLE
    if name == "framed":
        canvas.rectangle((0, 0, end - 1, end - 1), outline=FRAME, width=FRAME_WIDTH * SUPERSAMPLE)
        return
    shade, r = tuple(round(value * DOT) for value in ground), DOT_RADIUS * SUPERSAMPLE
    step = DOT_STEP * SUPERSAMPLE
    for y in range(step // 2, end, step):
        for x in range(step // 2, end, step):
            canvas.ellipse((x - r, y - r, x + r, y + r), fill=shade)


def _draw_outline(canvas: ImageDraw.ImageDraw, thing: Thing, scale: float) -> None:
    """Draws a dark line around a thing; the thing itself will cover the line's inner half."""
    x, y, r = thing.x * scale, thing.y * scale, thing.radius * scale
    if thing.shape in ("circle", "ring"):
        r += LINE * scale
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=OUTLINE)
        return
    corners = [(x + u * r, y + v * r) for u, v in OUTLINES[thing.shape]]
    canvas.line([*corners, *corners[:2]], fill=OUTLINE, width=round(2 * LINE * scale), joint="curve")


def _draw_gloss(canvas: ImageDraw.ImageDraw, thing: Thing, scale: float) -> None:
    u, v, share = GLOSS[thing.shape]
    x, y = (thing.x + u * thing.radius) * scale, (thing.y + v * thing.radius) * scale
    r = share * thing.radius * scale
    canvas.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))
