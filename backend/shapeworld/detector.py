"""The exact detector: reads a picture back into things, by colour segmentation and outline matching.

Every pixel gets the nearest colour of the world; connected patches of one colour become things; a patch's
outline is compared with each shape's by intersection over union (IoU). The picture is smoothed slightly
first, so that noise and blur do not split patches. `reprise shapeworld detect --measure` and the tests
measure the accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scenes import COLORS, GROUNDS, PLACES, SHAPES, SIZE, SIZE_BOUNDARY, Thing

GRID = 24  # side of the normalised outlines
MIN_AREA = 70  # pixels; the smallest thing of the world has about 110
MAX_SIDE = 60  # pixels; the largest thing is 32 wide, so anything larger is no thing
MIN_MATCH = 0.72  # minimum IoU of a patch's outline with a shape's
MIN_MARGIN = 0.05  # minimum lead over the next shape's IoU: a square with round corners is neither shape
_NAMES = (*COLORS, *GROUNDS)
# Half of a shape's detected box, as a share of its radius. A star's tips are too thin to be detected fully.
_EXTENT = {"square": 0.9, "star": 0.86} | dict.fromkeys(set(SHAPES) - {"square", "star"}, 1.0)


@dataclass(frozen=True)
class Detection:
    """One detected thing. Box edges and `area` in pixels; `confidence` in 0..1.

    `confidence` is the IoU of the outline with the shape's, times the purity of the colour.
    """

    shape: str
    color: str
    confidence: float
    left: float
    top: float
    right: float
    bottom: float
    area: int

    @property
    def center(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def radius(self) -> float:
        """The radius of a `Thing` with this box, in pixels."""
        return max(self.right - self.left, self.bottom - self.top) / 2 / _EXTENT[self.shape]

    @property
    def size(self) -> str:
        return "small" if self.radius < SIZE_BOUNDARY else "large"

    @property
    def place(self) -> str:
        x, y = self.center
        return PLACES[min(2, int(y * 3 // SIZE)) * 3 + min(2, int(x * 3 // SIZE))]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "size": self.size, "place": self.place}


@dataclass(frozen=True)
class Reading:
    """Ground and things of a picture. `ground_confidence` is the share of `ground` among ground-coloured
    pixels."""

    ground: str
    ground_confidence: float
    detections: tuple[Detection, ...]


def detect(picture: NDArray[np.uint8]) -> list[Detection]:
    """Things in a picture (H, W, 3) uint8, from top left to bottom right."""
    return list(read_scene(picture).detections)


def read_scene(
    picture: NDArray[np.uint8], colors: Mapping[str, tuple[int, int, int]] = COLORS, holes: int = 0
) -> Reading:
    """Ground and things of a picture (H, W, 3) uint8; `colors` are the things' possible colours.

    Holes of fewer than `holes` pixels are filled: reflections are not part of an outline.
    """
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(resize_picture(picture).astype(np.float32), sigma=(0.7, 0.7, 0))
    # Nearest colour: |p - c|^2 = |p|^2 - 2 p.c + |c|^2, and |p|^2 does not depend on c.
    palette = np.array([*colors.values(), *GROUNDS.values()], dtype=np.float32)
    labels = (np.square(palette).sum(-1) - 2 * smooth @ palette.T).argmin(-1)
    ground, share = _ground(labels)
    found = []
    for index, color in enumerate(COLORS):
        mask = labels == index
        if mask.sum() < MIN_AREA:
            continue
        # Edge pixels are mixtures and may be nearest to a third colour. Opening removes such one-pixel rims;
        # the dilation then gives the remaining patches their corners and tips back.
        rows, columns = _extent(mask)
        window = mask[rows, columns]
        labelled: Any = ndimage.label(ndimage.binary_opening(np.pad(window, 2)))
        patches = labelled[0][2:-2, 2:-2]
        for number in range(1, patches.max() + 1):
            core = patches == number
            if core.sum() >= MIN_AREA * 0.6:
                patch = np.zeros_like(mask)
                patch[rows, columns] = ndimage.binary_dilation(core, iterations=2, mask=window)
                if holes:
                    patch = fill_holes(patch, holes)
                found += _classify(patch, color, colors[color], smooth)
    found.sort(key=lambda d: (round(d.center[1] / SIZE * 3), d.center[0]))
    return Reading(ground, share, tuple(found))


def resize_picture(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) uint8 at 128 x 128 pixels. Raises ValueError for other forms."""
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"expected a picture (H, W, 3), got shape {picture.shape}")
    if picture.shape[:2] == (SIZE, SIZE):
        return picture
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def fill_holes(patch: NDArray, smaller: int) -> NDArray:
    """The mask with all holes of fewer than `smaller` pixels filled."""
    from scipy import ndimage

    labelled: Any = ndimage.label(ndimage.binary_fill_holes(patch) & ~patch)
    areas = np.bincount(labelled[0].ravel())
    small = areas < smaller
    small[0] = False
    return patch | small[labelled[0]]


def _ground(labels: NDArray) -> tuple[str, float]:
    """The most frequent ground colour, and its share of all ground-coloured pixels."""
    counts = np.bincount(labels.ravel(), minlength=len(_NAMES))[len(COLORS) :]
    if not counts.sum():
        return "white", 0.0
    best = int(counts.argmax())
    return _NAMES[len(COLORS) + best], float(counts[best] / counts.sum())


def _extent(mask: NDArray) -> tuple[slice, slice]:
    """The (rows, columns) of the bounding box of a mask with at least one pixel set."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _classify(patch: NDArray, color: str, pure: tuple[int, int, int], smooth: NDArray) -> list[Detection]:
    """The patch as a list with one detection, or an empty list if its outline matches no shape."""
    area = int(patch.sum())
    if area < MIN_AREA:
        return []
    rows, columns = _extent(patch)
    if max(rows.stop - rows.start, columns.stop - columns.start) > MAX_SIDE:
        return []
    outline = _normalise(patch[rows, columns])
    shapes, outlines, aspects = _templates()
    fit = np.minimum(outline, outlines).sum((1, 2)) / np.maximum(outline, outlines).sum((1, 2))
    # Outlines are stretched to a square, so the aspect ratio is compared separately.
    aspect = (columns.stop - columns.start) / (rows.stop - rows.start)
    fit *= np.minimum(1, 1.12 * np.minimum(aspect / aspects, aspects / aspect))
    best = int(fit.argmax())
    others = fit[[shape != shapes[best] for shape in shapes]]
    if fit[best] < MIN_MATCH or fit[best] - others.max() < MIN_MARGIN:
        return []
    distance = np.sqrt(np.square(smooth[patch] - np.array(pure, dtype=np.float32)).sum(-1))
    purity = float(np.clip(1.25 - np.median(distance) / 160, 0, 1))
    confidence = min(1.0, float(fit[best]) * 1.08) * purity
    left, top, right, bottom = map(float, (columns.start, rows.start, columns.stop, rows.stop))
    return [Detection(shapes[best], color, confidence, left, top, right, bottom, area)]


def _normalise(mask: NDArray) -> NDArray:
    """A mask, resized to a GRID x GRID coverage map in 0..1."""
    from PIL import Image

    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize((GRID, GRID), Image.Resampling.BOX), dtype=np.float32) / 255


@cache
def _templates() -> tuple[list[str], NDArray, NDArray]:
    """(shapes, outlines (T, GRID, GRID), aspect ratios (T,)): each shape in two sizes."""
    from PIL import Image, ImageDraw
    from scipy import ndimage

    from .drawing import SUPERSAMPLE, draw_thing

    shapes, outlines, aspects = [], [], []
    side = 48
    for shape in SHAPES:
        for radius in (10.0, 14.5):
            image = Image.new("L", (side * SUPERSAMPLE, side * SUPERSAMPLE), 0)
            thing = Thing(shape, "black", side / 2, side / 2, radius)
            draw_thing(ImageDraw.Draw(image), thing, 255, 0, SUPERSAMPLE)
            seen = ndimage.gaussian_filter(np.asarray(image.reduce(SUPERSAMPLE), dtype=np.float32), 0.7)
            cut = (seen > 127)[_extent(seen > 127)]
            shapes.append(shape)
            outlines.append(_normalise(cut))
            aspects.append(cut.shape[1] / cut.shape[0])
    return shapes, np.stack(outlines), np.array(aspects)


def matches(thing: Thing, detection: Detection) -> bool:
    """Whether a detection equals a true thing: same shape and colour, centre within 4 pixels."""
    x, y = detection.center
    near = abs(x - thing.x) < 4 and abs(y - thing.y) < 4
    return near and (detection.shape, detection.color) == (thing.shape, thing.color)
