"""Styles: words, pictures, and the detector that reads them back."""

import random

import numpy as np
import pytest
import torch

from reprise.backend.rewards.shapeworld_preference import ShapeWorldPreference
from reprise.backend.shapeworld.detector import matches, read_scene
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.prompts import parse_prompt, prompts, sample_layout, sample_prompts
from reprise.backend.shapeworld.scenes import Scene, place_thing, random_scene
from reprise.backend.shapeworld.style_detector import read_styled
from reprise.backend.shapeworld.styles import (
    FACETS,
    PLAIN_STYLE,
    STYLE_WORDS,
    Style,
    detailed_prompt,
    parse_style,
    preferred_style,
    random_style,
    styled_caption,
)


def test_plain_pictures_have_not_changed():
    scene = random_scene(random.Random(5))
    assert np.array_equal(draw(scene), draw(scene, PLAIN_STYLE))
    assert PLAIN_STYLE.words == ()


def test_styles_and_things_are_read_back():
    rng = random.Random(11)
    right = dict.fromkeys((*FACETS, "things", "ground"), 0)
    count = 150
    for _ in range(count):
        scene, style = random_scene(rng), random_style(rng)
        if style.outline == "outlined" and any(thing.color == "black" for thing in scene.things):
            style = PLAIN_STYLE  # a dark line around black makes it larger
        reading, seen = read_styled(draw(scene, style))
        for facet in FACETS:
            right[facet] += getattr(style, facet) == getattr(seen, facet)
        found = reading.detections
        right["things"] += len(found) == len(scene.things) and all(
            any(matches(thing, one) for one in found) for thing in scene.things
        )
        right["ground"] += reading.ground == scene.ground
    shares = {name: number / count for name, number in right.items()}
    assert min(shares.values()) >= 0.94, shares
    assert min(shares["palette"], shares["background"], shares["ground"]) >= 0.99, shares


@pytest.mark.parametrize("shape", ["circle", "ring", "star"])
def test_a_reflection_is_not_taken_for_a_hole(shape):
    scene = Scene("white", (place_thing(random.Random(2), shape, "blue", "center", "large"),))
    picture = draw(scene, Style(texture="glossy"))
    reading, style = read_styled(picture)
    assert style == Style(texture="glossy")
    assert [one.shape for one in reading.detections] == [shape]
    assert read_scene(draw(scene)).detections == read_scene(draw(scene), holes=50).detections


def test_style_words_are_parsed():
    assert parse_style("a photo of a ring, Pastel, glossy.") == Style(palette="pastel", texture="glossy")
    assert parse_style("dark, a ring, pastel") == Style(palette="pastel")
    rng = random.Random(0)
    for _ in range(100):
        style = random_style(rng)
        assert parse_style(", ".join(style.words)) == style
    captions = [styled_caption(random_scene(rng), random_style(rng), rng) for _ in range(500)]
    assert 0.04 < captions.count("") / 500 < 0.14
    for word in STYLE_WORDS:
        assert sum(word in caption.replace(",", "").split() for caption in captions) > 40


def test_detailed_prompts_keep_the_users_prompt_and_its_meaning():
    rng = random.Random(3)
    for case in sample_prompts("train", 5):
        text = detailed_prompt(case.prompt, sample_layout(case, rng), preferred_style(case))
        assert text.startswith(case.prompt + ", ")
        assert parse_style(text) == preferred_style(case)


def test_preferences_differ_between_prompts_and_black_is_never_outlined():
    cases = [case for split in ("train", "held-out") for case in prompts(split)]
    liked = {preferred_style(case) for case in cases}
    assert len(liked) == 8 and all(style.texture == "glossy" for style in liked)
    black = parse_prompt("a photo of a black star")
    assert preferred_style(black) == Style("dark", "shadowed", "framed", "glossy")


def test_agreement_is_the_share_of_equal_facets():
    style = Style("dark", "outlined", "framed", "glossy")
    assert style.agreement(style) == 1
    assert style.agreement(PLAIN_STYLE) == 0
    assert style.agreement(Style("dark", "shadowed", "framed")) == 0.5


def test_the_preference_is_half_correctness_half_style():
    prompt = "a photo of a red circle"
    case = parse_prompt(prompt)
    scene = sample_layout(case, random.Random(1))
    other = Scene(scene.ground, (place_thing(random.Random(1), "star", "green", "left", "large"),))
    pictures = [draw(scene, preferred_style(case)), draw(scene), draw(other, preferred_style(case))]
    images = torch.from_numpy(np.stack(pictures)).float() / 255
    right, plain, wrong = ShapeWorldPreference().score(images, [prompt] * 3)
    assert right > 0.98
    assert 0.48 < plain <= 0.5
    assert 0.5 <= wrong < 0.7
