"""The SFT triples and the check of a rewrite."""

import random

import pytest

from reprise.backend.rewriters.prompting import FORM, Answer, Unparsable, parse
from reprise.backend.shapeworld.captions import spelled_out
from reprise.backend.shapeworld.paraphrases import paraphrase
from reprise.backend.shapeworld.prompts import (
    RELATIONS,
    TASKS,
    parse_prompt,
    prompts,
    sample_layout,
    sample_prompts,
)
from reprise.backend.shapeworld.read_back import read_back, satisfies
from reprise.backend.shapeworld.rewrites import generic_rewrites, triples
from reprise.backend.shapeworld.scenes import random_scene


@pytest.fixture(scope="module")
def examples():
    return list(triples(3000, seed=11))


def test_every_triple_satisfies_its_prompt(examples):
    shapes = [example for example in examples if example.case is not None]
    assert len(shapes) > 2500
    for example in shapes:
        assert satisfies(example.case, example.rewrite), (example.prompt, example.rewrite)


def test_no_held_out_prompt_or_combination_is_used(examples):
    held_out_prompts = {case.prompt for case in prompts("held-out")}
    held_out_keys = {case.key for case in prompts("held-out")}
    train_keys = {case.key for case in prompts("train")}
    assert not held_out_keys & train_keys
    for example in examples:
        assert example.prompt not in held_out_prompts
        if example.case is not None and example.case.task in TASKS:
            assert example.case.key in train_keys


def test_richer_prompts_are_made_of_train_combinations(examples):
    held_out = {case.key for case in prompts("held-out")}
    for case in (e.case for e in examples if e.case is not None and e.case.task == "richer"):
        for need in case.include:
            assert f"counting: {need.count} {need.shape}" not in held_out
            if need.color and len(case.include) == 1:
                assert f"colors: {need.color} {need.shape}" not in held_out
        a, *rest = sorted(need.shape for need in case.include)
        if rest and not any(need.color or need.position for need in case.include):
            assert f"two_object: {a}+{rest[0]}" not in held_out


def test_triples_can_be_parsed_and_are_seeded(examples):
    for example in examples:
        text = FORM.format(reason=example.reason, prompt=example.rewrite)
        assert parse(text) == Answer(example.reason, example.rewrite)
        assert set(example.row()) - {"critique"} == {"prompt", "reason", "rewrite"}
    assert list(triples(50, seed=11)) == examples[:50]
    assert list(triples(50, seed=12)) != examples[:50]


def test_critiques_have_the_detectors_wording(examples):
    said = " ".join(example.critique for example in examples if example.critique)
    for phrase in (
        "were asked for",
        "there is no ",
        "I see no ",
        ", not ",
        " is not left of the ",
        "the background is ",
        "that was not asked for",
    ):
        assert phrase in said, phrase
    assert 0.2 < sum(example.critique is not None for example in examples) / len(examples) < 0.35


def test_spelled_out_captions_are_read_back():
    rng = random.Random(0)
    for _ in range(2000):
        scene = random_scene(rng)
        found = read_back(spelled_out(scene, rng))
        assert found is not None
        assert found.ground == scene.ground
        assert sorted((t.color, t.shape, t.place) for t in found.things) == sorted(
            (t.color, t.shape, t.place) for t in scene.things
        )


def test_layouts_of_held_out_prompts_satisfy_them():
    rng = random.Random(0)
    for case in sample_prompts("held-out", 20):
        assert satisfies(case, spelled_out(sample_layout(case, rng), rng))


@pytest.mark.parametrize(
    ("prompt", "rewrite", "right"),
    [
        ("a photo of a star", "a large red star in the center, on a grey background", True),
        ("a photo of a star", "a photo of a star", False),
        ("a photo of a star", "a large red star in the center, on a grey background, and more", False),
        ("a photo of a star", "a large red heart in the center, on a grey background", False),
        (
            "a photo of a star on a pink background",
            "a large red star in the center, on a grey background",
            False,
        ),
        ("a photo of a red star", "a blue star in the center, on a grey background", False),
        ("a photo of two stars", "white background, two red stars: one at the top, one in the center", True),
        ("a photo of two stars", "two red stars: one at the top, on a grey background", False),
        (
            "a photo of two stars",
            "three red stars: one at the top, one on the left, one on the right, on a grey background",
            False,
        ),
        (
            "a photo of two stars",
            "two red stars: one at the top and one at the top, on a grey background",
            False,
        ),
        (
            "a photo of a star and a ring",
            "pink background, a red star at the top, a red ring on the left",
            True,
        ),
        ("a photo of a star and a ring", "grey background, a red star at the top", False),
        (
            "a photo of a star above a ring",
            "pink background, a red star at the top, a red ring in the center",
            True,
        ),
        (
            "a photo of a star above a ring",
            "pink background, a red star at the bottom, a red ring in the center",
            False,
        ),
        (
            "a photo of a star above a ring",
            "pink background, a red star at the top left, a red ring at the top",
            False,
        ),
    ],
)
def test_rewrites_are_checked_against_their_prompts(prompt, rewrite, right):
    assert satisfies(parse_prompt(prompt), rewrite) is right


def test_paraphrases_keep_the_meaning():
    """Where the ShapeWorld judge understands a paraphrase, it understands the same thing."""
    rng = random.Random(0)
    for case in sample_prompts("train", 40):
        read = parse_prompt(paraphrase(case, rng))
        asked = sorted((need.shape, need.color or "", need.count) for need in case.include)
        assert sorted((need.shape, need.color or "", need.count) for need in read.include) == asked
        if case.include[-1].position and read.include[-1].position:
            assert case.include[-1].position[0] in RELATIONS


def test_generic_rewrites_are_readable_and_mostly_do_not_suit_the_renderer():
    made = list(generic_rewrites(600, 3))
    assert made == list(generic_rewrites(600, 3)) and made[:50] != list(generic_rewrites(50, 4))
    for one in made:
        assert not isinstance(parse(FORM.format(reason=one.reason, prompt=one.rewrite)), Unparsable)
    good = sum(satisfies(one.case, one.rewrite) for one in made) / len(made)
    assert 0.1 < good < 0.25  # something for RL to find, and little
    related = [one for one in made if one.case.task == "position"]
    assert sum(satisfies(one.case, one.rewrite) for one in related) / len(related) < 0.1
    held_out = {(case.task, case.key) for case in prompts("held-out")}
    assert not held_out & {(one.case.task, one.case.key) for one in made}
