"""Prompts, metadata, splits, layouts and the prompt parser agree with each other."""

import random

import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.rewards.shapeworld import faults, is_right
from reprise.backend.shapeworld.captions import loose_caption, spelled_out, training_caption
from reprise.backend.shapeworld.detector import read_scene
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.prompts import TASKS, parse_prompt, prompts, sample_layout, sample_prompts
from reprise.backend.shapeworld.scenes import random_scene
from reprise.backend.shapeworld.tokenizers import vocabulary_words


def test_splits_share_no_combination_and_no_text():
    train, held_out = prompts("train"), prompts("held-out")
    assert not {c.key for c in train} & {c.key for c in held_out}
    assert not {c.prompt for c in train} & {c.prompt for c in held_out}
    assert {c.task for c in train} == {c.task for c in held_out} == set(TASKS)


def test_a_relation_is_held_out_in_both_directions():
    held_out = {c.prompt for c in prompts("held-out")}
    for case in prompts("train"):
        if case.task == "position" and case.ground is None:
            b, a = case.include[0].shape, case.include[1].shape
            inverse = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
            assert f"a photo of a {b} {inverse[case.include[1].position[0]]} a {a}" not in held_out


def test_samples_are_large_seeded_and_without_duplicates():
    cases = sample_prompts("held-out", 66, seed=0)
    assert len(cases) >= 300 and len({c.prompt for c in cases}) == len(cases)
    assert cases == sample_prompts("held-out", 66, seed=0) != sample_prompts("held-out", 66, seed=1)


def test_an_unknown_split_is_refused():
    with pytest.raises(BadInput, match="held-out"):
        prompts("test")


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_every_generated_prompt_is_parsed_back(split):
    for case in prompts(split):
        parsed = parse_prompt(case.prompt)
        assert (parsed.task, parsed.include, parsed.ground) == (case.task, case.include, case.ground)


@pytest.mark.parametrize(
    "prompt, want",
    [
        ("red circle", "colors"),
        ("three stars please", "counting"),
        ("A  RED circle\nleft of a blue square", "position"),
        ("a star under a ring on a gray background", "position"),
        ("two green crosses", "counting"),
    ],
)
def test_short_wordings_are_parsed(prompt, want):
    assert parse_prompt(prompt).task == want


def test_a_prompt_without_shapes_is_refused():
    with pytest.raises(BadInput, match="name one of its shapes.*'a cat on a mat'"):
        parse_prompt("a cat on a mat")


def test_layouts_satisfy_their_case_when_drawn():
    rng = random.Random(5)
    for case in sample_prompts("train", 12, seed=2) + sample_prompts("held-out", 12, seed=3):
        reading = read_scene(draw(sample_layout(case, rng)))
        assert is_right(case, reading), (case.prompt, faults(case, reading))


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "held-out"])
def test_the_judge_accepts_a_drawing_of_every_prompt(split, task):
    """What the judge's own mistakes cost the benchmark: at most one right picture in 200 of any task."""
    rng = random.Random(11)
    cases = [case for case in prompts(split) if case.task == task]
    refused = [
        case.prompt for case in cases if not is_right(case, read_scene(draw(sample_layout(case, rng))))
    ]
    assert len(refused) <= 0.005 * len(cases), (len(refused), len(cases), refused[:5])


def test_metadata_has_genevals_form():
    case = next(c for c in prompts("train") if c.task == "counting" and c.ground)
    data = case.metadata()
    need = case.include[0]
    assert data["include"] == [{"class": need.shape, "count": need.count}]
    assert data["exclude"] == [{"class": need.shape, "count": need.count + 1}]
    assert data["tag"] == "counting" and data["prompt"] == case.prompt and data["ground"] == case.ground


def test_captions_use_only_words_the_tokenizers_know():
    rng, known = random.Random(0), set(vocabulary_words())
    for _ in range(500):
        scene = random_scene(rng)
        for text in (spelled_out(scene), spelled_out(scene, rng), loose_caption(scene, rng)):
            assert not {w.strip(",:") for w in text.split()} - known


def test_training_captions_are_mostly_spelled_out_and_sometimes_empty():
    rng = random.Random(0)
    captions = [training_caption(random_scene(rng), rng) for _ in range(3000)]
    empty = sum(not c for c in captions) / len(captions)
    related = sum(any(w in c.split() for w in ("above", "below")) for c in captions)
    assert 0.06 < empty < 0.11
    assert 0 < related < 0.02 * len(captions)  # seldom: the renderer's honest weakness
