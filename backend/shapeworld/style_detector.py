"""Detects a picture's style as well as its things.

`reprise shapeworld detect --measure N --styled` measures the accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .detector import Detection, Reading, read_scene, resize_picture
from .drawing import DOT, DOT_STEP, FRAME, FRAME_WIDTH, GLOSS, OUTLINE, SHADOW
from .scenes import GROUNDS, SIZE
from .styles import FACETS, Style, palette_colors

COLOR_DISTANCE = 45  # RGB units; maximum distance of a pixel from its palette's colour
CORE_DISTANCE = 60  # RGB units; maximum distance of a thing's pixel from the thing's colour
FRAME_DISTANCE = 70  # RGB units; maximum distance of the border from the frame's colour
DOT_CONTRAST = 10  # RGB units; minimum contrast between a dot and the ground around it
LINE_CONTRAST, SHADOW_CONTRAST = 45, 18  # RGB units; how much darker than the ground, at least
REFLECTION = 50  # pixels; the largest reflection has 46, the smallest ring's hole 76
GLOSS_SHARE = 0.6  # a reflection's maximum distance from white, as a share of the thing's own


def read_styled(picture: NDArray[np.uint8]) -> tuple[Reading, Style]:
    """(things and ground, style) of a picture (H, W, 3) uint8."""
    picture = resize_picture(picture)
    palette = _palette(picture)
    colors = {name: np.array(color, np.float32) for name, color in palette_colors(palette).items()}
    reading, pixels = read_scene(picture, palette_colors(palette), REFLECTION), picture.astype(np.float32)
    return reading, Style(
        palette=palette,
        outline=_outline(pixels, reading, colors),
        background=_background(pixels),
        texture="glossy" if _glossy(pixels, reading.detections, colors) else None,
    )


def _palette(picture: NDArray[np.uint8]) -> str | None:
    """The palette of most pixels, among those that are not ground, line or shadow."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(picture.astype(np.float32), (0.5, 0.5, 0))
    tables, others = _tables()
    pixels = smooth[::2, ::2].reshape(-1, 1, 3)  # a quarter of the pixels is enough for a vote
    away = [np.square(pixels - table).sum(-1).min(-1) for table in (*tables.values(), others)]
    nearest, near = np.argmin(away, axis=0), np.min(away, axis=0) < COLOR_DISTANCE**2
    votes = np.bincount(nearest[near], minlength=len(away))[:-1]
    return tuple(tables)[int(votes.argmax())]


@cache
def _tables() -> tuple[dict[str | None, NDArray], NDArray]:
    """({palette: its colours}, the colours that belong to no thing)."""
    tables = {
        palette: np.array(list(palette_colors(palette).values()), np.float32)
        for palette in (None, *FACETS["palette"])
    }
    grounds = np.array(list(GROUNDS.values()), np.float32)
    rest = np.array([FRAME, OUTLINE, (255, 255, 255)], np.float32)
    return tables, np.concatenate([grounds, grounds * SHADOW, grounds * DOT, rest])


def _background(pixels: NDArray) -> str | None:
    inner = FRAME_WIDTH - 1
    border = np.ones((SIZE, SIZE), bool)
    border[inner:-inner, inner:-inner] = False
    if np.median(np.linalg.norm(pixels[border] - np.array(FRAME), axis=-1)) < FRAME_DISTANCE:
        return "framed"
    # The median over all cells of the dots' grid: things and shadows are outvoted.
    cells = SIZE // DOT_STEP
    folded = np.median(pixels.mean(-1).reshape(cells, DOT_STEP, cells, DOT_STEP), axis=(0, 2))
    middle = slice(DOT_STEP // 2 - 1, DOT_STEP // 2 + 1)
    contrast = np.median([*folded[0], *folded[:, 0]]) - folded[middle, middle].mean()
    return "dotted" if contrast > DOT_CONTRAST else None


def _outline(pixels: NDArray, reading: Reading, colors: dict[str, NDArray]) -> str | None:
    """The outline style, from how much darker than the ground the surroundings of things are: on both sides
    for outlines, below and to the right for shadows."""
    from scipy import ndimage

    ground, found = float(np.mean(GROUNDS[reading.ground])), []
    for one in _others(reading.detections):
        left, top = max(0, int(one.left) - 5), max(0, int(one.top) - 5)
        window = pixels[top : int(one.bottom) + 5, left : int(one.right) + 5]
        like = np.linalg.norm(window - colors[one.color], axis=-1) < CORE_DISTANCE
        core: Any = ndimage.binary_fill_holes(like)
        grown: list[Any] = [ndimage.binary_dilation(core, iterations=width) for width in (1, 3)]
        rim = grown[1] & ~grown[0]
        darker = ground - window.mean(-1)
        y, x = np.mgrid[: window.shape[0], : window.shape[1]]
        side = (x + left - one.center[0]) + (y + top - one.center[1])
        reach = (one.right - one.left) / 4
        halves = rim & (side < -reach), rim & (side > reach)
        if all(half.any() for half in halves):
            found.append([float(np.median(darker[half])) for half in halves])
    if not found:
        return None
    above, below = np.median(found, axis=0)
    if min(above, below) > LINE_CONTRAST:
        return "outlined"
    return "shadowed" if below - above > SHADOW_CONTRAST else None


def _others(detections: Sequence[Detection]) -> Sequence[Detection]:
    """The things that are not black, if there are any: around black a dark line does not show."""
    return [one for one in detections if one.color != "black"] or detections


def _gloss(one: Detection) -> tuple[float, float, float]:
    """(row, column, radius) in pixels: where a thing would reflect light, and the thing's radius."""
    (x, y), r = one.center, one.radius
    if one.shape == "star":
        y += 0.095 * r  # a star's box extends further up than down
    u, v, _ = GLOSS[one.shape]
    return y + v * r - 0.5, x + u * r - 0.5, r


def _glossy(pixels: NDArray, detections: Sequence[Detection], colors: dict[str, NDArray]) -> bool:
    votes = []
    for one in detections:
        y, x, _ = _gloss(one)
        rows, columns = (slice(max(0, round(v) - 1), round(v) + 2) for v in (y, x))
        spot = np.median(pixels[rows, columns].reshape(-1, 3), axis=0)
        votes.append(np.linalg.norm(255 - spot) < GLOSS_SHARE * np.linalg.norm(255 - colors[one.color]))
    return bool(votes) and sum(votes) * 2 > len(votes)
