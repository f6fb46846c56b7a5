"""The detector reads drawn scenes back, noisy and blurred ones too."""

import random

import numpy as np
import pytest
from scipy import ndimage

from reprise.backend.shapeworld.detector import detect, matches, read_scene
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.scenes import (
    COLORS,
    GROUNDS,
    PLACES,
    SHAPES,
    SIZE,
    Scene,
    place_thing,
    random_scene,
)


def spoiled(picture, noise, blur, rng):
    out = picture.astype(np.float32)
    if blur:
        out = ndimage.gaussian_filter(out, (blur, blur, 0))
    return np.clip(out + rng.normal(0, noise, out.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise, blur", [(0, 0), (12, 0), (8, 0.7)])
def test_at_least_995_of_1000_things_are_read_back(noise, blur):
    rng, pixels = random.Random(7), np.random.default_rng(7)
    total = right = extra = 0
    for _ in range(150):
        scene = random_scene(rng)
        seen = detect(spoiled(draw(scene), noise, blur, pixels))
        total += len(scene.things)
        right += sum(any(matches(thing, d) for d in seen) for thing in scene.things)
        extra += max(0, len(seen) - len(scene.things))
    assert right / total >= 0.995
    assert extra <= total * 0.005


@pytest.mark.parametrize("ground", GROUNDS)
def test_every_shape_in_every_color_on_every_ground(ground):
    rng = random.Random(3)
    for shape in SHAPES:
        for color in COLORS:
            scene = Scene(ground, (place_thing(rng, shape, color, "center", "large"),))
            (seen,) = detect(draw(scene))
            assert (seen.shape, seen.color, seen.place, seen.size) == (shape, color, "center", "large")


def test_place_size_and_ground_are_read():
    rng = random.Random(1)
    for place in PLACES:
        scene = Scene("beige", (place_thing(rng, "heart", "blue", place, "small"),))
        reading = read_scene(draw(scene))
        assert reading.ground == "beige" and reading.ground_confidence > 0.99
        assert [(d.place, d.size) for d in reading.detections] == [(place, "small")]


@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_pictures_have_no_detections(value):
    assert detect(np.full((SIZE, SIZE, 3), value, np.uint8)) == []


def test_noise_alone_has_no_detections():
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    assert detect(noise) == []


def test_other_sizes_are_resampled_and_other_shapes_refused():
    scene = Scene("white", (place_thing(random.Random(0), "cross", "green", "left", "large"),))
    big = np.kron(draw(scene), np.ones((2, 2, 1), np.uint8))
    assert [(d.shape, d.color) for d in detect(big)] == [("cross", "green")]
    with pytest.raises(ValueError, match="expected a picture"):
        detect(np.zeros((SIZE, SIZE), np.uint8))


def test_a_square_with_round_corners_is_neither_square_nor_circle():
    y, x = np.mgrid[:SIZE, :SIZE] - 63.5
    picture = np.empty((SIZE, SIZE, 3), np.uint8)
    picture[:] = GROUNDS["white"]
    # |x|^p + |y|^p: p = 2 is a circle, p = infinity a square.
    for power, expected in ((2, ["circle"]), (4, []), (12, ["square"])):
        seen = picture.copy()
        seen[np.abs(x) ** power + np.abs(y) ** power < 14.0**power] = COLORS["red"]
        assert [d.shape for d in detect(seen)] == expected, power
