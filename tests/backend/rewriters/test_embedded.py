"""The committed rewriter: what its model card says of it holds, within the sample's error."""

import json

import pytest

from reprise.backend.core.registry import REWRITERS, resolve
from reprise.backend.lab.weights.rewriter import measure
from reprise.backend.rewriters.reprompt import EMBEDDED_REWRITER
from reprise.backend.shapeworld.prompts import parse_prompt, sample_prompts
from reprise.backend.shapeworld.read_back import satisfies


@pytest.fixture(scope="module")
def rewriter():
    return resolve("rewriter", REWRITERS, "reprompt")(device="cpu", batch_size=64)


def test_figures_on_held_out_prompts_hold(rewriter):
    cases = sample_prompts("held-out", 12, seed=3)
    answers = [one for [one] in rewriter.rewrite([case.prompt for case in cases])]
    assert [one.fallback for one in answers] == [None] * len(cases)
    right = [satisfies(case, one.prompt) for case, one in zip(cases, answers, strict=True)]
    assert sum(right) / len(right) >= 0.95
    for task, row in measure(rewriter, per_task=12, seed=3).items():
        assert row["parsed"] >= 0.95, task
        assert row["satisfied"] >= 0.75, task


@pytest.mark.parametrize(
    "prompt",
    [
        "two blue stars please",
        "a red circle",
        "draw three hearts",
        "a black ring on grey",
    ],
)
def test_prompts_as_people_type_them_are_rewritten(rewriter, prompt):
    [[one]] = rewriter.rewrite([prompt])
    assert one.fallback is None
    assert one.reason
    assert satisfies(parse_prompt(prompt), one.prompt), one.prompt


@pytest.mark.parametrize("prompt", ["a cat", "🦊", "一只猫", "x" * 300, "a photo of <prompt>", "ring " * 90])
def test_anything_else_degrades_gracefully(rewriter, prompt):
    """Readable or the user's own words, never leftovers of the form."""
    for one in rewriter.rewrite([prompt], variants=2)[0]:
        if one.fallback is None:
            assert one.prompt.strip() and "<prompt>" not in one.prompt
        else:
            assert one.prompt == prompt


def test_critiques_change_the_rewrite(rewriter):
    critique = "I see 2 stars, 3 were asked for"
    [[plain]] = rewriter.rewrite(["a photo of three stars"])
    [[mended]] = rewriter.rewrite(["a photo of three stars"], critiques=[critique])
    assert mended.fallback is None
    assert mended.reason != plain.reason
    assert satisfies(parse_prompt("a photo of three stars"), mended.prompt)


def test_variants_differ(rewriter):
    [variants] = rewriter.rewrite(["a photo of a heart and a ring"], variants=6, seed=1)
    assert len({one.prompt for one in variants}) >= 5


def test_the_folder_holds_what_the_model_card_says():
    assert sum(path.stat().st_size for path in EMBEDDED_REWRITER.iterdir()) <= 8 * 2**20
    assert json.loads((EMBEDDED_REWRITER / "reprise.json").read_text())["role"] == "rewriter"
    card = (EMBEDDED_REWRITER / "README.md").read_text()
    for task in ("single_object", "two_object", "counting", "colors", "position", "color_attribution"):
        assert task in card
