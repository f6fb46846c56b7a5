"""GenEval's rules on hand-made readings: every task, the edges, the words of the critique."""

import pytest
import torch

from reprise.backend.core.errors import BadInput
from reprise.backend.rewards.shapeworld import (
    ShapeWorldSoft,
    ShapeWorldStrict,
    component,
    faults,
    is_right,
    soft_score,
)
from reprise.backend.shapeworld.detector import Detection, Reading
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.prompts import parse_prompt
from reprise.backend.shapeworld.scenes import Scene, Thing


def at(shape, color, x, y, confidence=0.95):
    return Detection(shape, color, confidence, x - 10, y - 10, x + 10, y + 10, 314)


def reading(*detections, ground="white"):
    return Reading(ground, 1.0, detections)


RED_CIRCLE, BLUE_SQUARE = at("circle", "red", 30, 30), at("square", "blue", 90, 30)


@pytest.mark.parametrize(
    "prompt, seen, wrong",
    [
        ("a photo of a circle", reading(RED_CIRCLE), []),
        ("a photo of a circle", reading(RED_CIRCLE, BLUE_SQUARE), []),  # more things are no fault
        ("a photo of a circle", reading(BLUE_SQUARE), ["there is no circle"]),
        ("a photo of a circle and a square", reading(RED_CIRCLE, BLUE_SQUARE), []),
        ("a photo of a circle and a square", reading(RED_CIRCLE), ["there is no square"]),
        ("a photo of a red circle", reading(RED_CIRCLE), []),
        ("a photo of a green circle", reading(RED_CIRCLE), ["the circle is red, not green"]),
        ("a photo of two circles", reading(RED_CIRCLE, at("circle", "blue", 90, 90)), []),
        ("a photo of two circles", reading(RED_CIRCLE), ["I see 1 circle, 2 were asked for"]),
        ("a photo of three stars", reading(), ["I see no stars, 3 were asked for"]),
        ("a photo of two circles", reading(*[RED_CIRCLE] * 3), ["I see 3 circles, 2 were asked for"]),
        ("a photo of a circle left of a square", reading(RED_CIRCLE, BLUE_SQUARE), []),
        (
            "a photo of a circle right of a square",
            reading(RED_CIRCLE, BLUE_SQUARE),
            ["the circle is not right of the square"],
        ),
        ("a photo of a circle above a square", reading(RED_CIRCLE), ["there is no square"]),
        ("a photo of a red circle and a blue square", reading(RED_CIRCLE, BLUE_SQUARE), []),
        (
            "a photo of a blue circle and a red square",
            reading(RED_CIRCLE, BLUE_SQUARE),
            ["the circle is red, not blue", "the square is blue, not red"],
        ),
        ("a photo of a circle on a grey background", reading(RED_CIRCLE, ground="grey"), []),
        (
            "a photo of a circle on a grey background",
            reading(RED_CIRCLE),
            ["the background is white, not grey"],
        ),
    ],
)
def test_verdicts_follow_genevals_rules(prompt, seen, wrong):
    case = parse_prompt(prompt)
    assert faults(case, seen) == wrong
    assert is_right(case, seen) == (not wrong)
    # Right pictures score above .5, wrong ones below: a soft score never ranks wrong over right.
    assert (soft_score(case, seen) > 0.5) == (not wrong)


@pytest.mark.parametrize(
    "dx, dy, relation, want",
    [
        (0, 0, "left of", 0.0),  # equal centres: no direction at all
        (3, 0, "right of", 0.0),  # within the margin of .1 x (20 + 20) = 4 pixels
        (5, 0, "right of", 1.0),
        (-50, 0, "left of", 1.0),
        (-50, 0, "right of", -1.0),
        (0, 50, "below", 1.0),
        (0, -50, "above", 1.0),
        (34, 34, "right of", 2**-0.5),  # 30 and 30 after the margin: a diagonal counts as both
        (34, 34, "below", 2**-0.5),
    ],
)
def test_the_position_component_equals_the_hand_calculation(dx, dy, relation, want):
    a, b = at("circle", "red", 60 + dx, 60 + dy), at("square", "blue", 60, 60)
    assert component(a, b, relation) == pytest.approx(want)


def test_the_soft_score_rises_towards_what_was_asked():
    case = parse_prompt("a photo of four stars")
    stars = [at("star", "red", 20 + 25 * i, 60) for i in range(5)]
    scores = [soft_score(case, reading(*stars[:n])) for n in range(5)]
    assert scores == sorted(scores) and len(set(scores)) == 5
    assert soft_score(case, reading(*stars)) < 0.5 < scores[4]
    case = parse_prompt("a photo of a red star")
    assert 0 < soft_score(case, reading(at("star", "blue", 60, 60))) < soft_score(case, reading(stars[0]))


def images(*scenes):
    return torch.stack([torch.from_numpy(draw(scene).copy()).float() / 255 for scene in scenes])


def test_scores_do_not_depend_on_the_batch():
    scenes = [Scene("white", (Thing("circle", c, 40.0, 60.0, 14.0),)) for c in ("red", "blue", "green")]
    prompts = ["a photo of a red circle"] * 3
    together = ShapeWorldSoft().score(images(*scenes), prompts)
    alone = [ShapeWorldSoft().score(images(scene), prompts[:1])[0] for scene in scenes]
    assert together == alone and together[0] > 0.9 > 0.5 > together[1]
    assert ShapeWorldStrict().score(images(*scenes), prompts) == [1.0, 0.0, 0.0]


def test_a_verdict_carries_the_critique():
    scene = Scene("white", (Thing("circle", "blue", 40.0, 60.0, 14.0),))
    yes, no = ShapeWorldSoft().criticize(images(scene, scene), ["a blue circle", "a red circle"])
    assert yes.satisfied and yes.critique == ""
    assert not no.satisfied and no.critique == "the circle is blue, not red"


def test_a_prompt_it_cannot_check_is_an_error_not_a_zero():
    with pytest.raises(BadInput, match="shapes"):
        ShapeWorldSoft().score(torch.zeros(1, 128, 128, 3), ["a cat"])
