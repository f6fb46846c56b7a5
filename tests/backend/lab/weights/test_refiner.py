"""What PRIP's ablation draws with, and its swapped pivots."""

import random

import torch

from reprise.backend.core.registry import RENDERERS, resolve
from reprise.backend.core.types import Job
from reprise.backend.lab.weights import refiner as recipe
from reprise.backend.lab.weights.refiner import RENDERER, STEPS, SwappedPivots, build
from reprise.backend.rewards.shapeworld_preference import ShapeWorldPreference
from reprise.backend.rewriters.prip.rewriter import PripRewriter
from reprise.backend.shapeworld.prompts import sample_layout, sample_prompts
from reprise.backend.shapeworld.styles import PLAIN_STYLE, detailed_prompt, preferred_style

from ...rewriters.prip.tiny_prip import save


def test_the_styled_renderer_draws_the_styles_that_a_prompt_names():
    cases, rng = sample_prompts("train", 4, 0), random.Random(0)
    scenes = [sample_layout(case, rng) for case in cases]
    renderer, judge = resolve("renderer", RENDERERS, RENDERER)(steps=STEPS), ShapeWorldPreference()
    scores = []
    for styles in ([PLAIN_STYLE] * len(cases), list(map(preferred_style, cases))):
        texts = [
            detailed_prompt(case.prompt, scene, style) for case, scene, style in zip(cases, scenes, styles)
        ]
        images = renderer.render([Job(text, seed) for seed, text in enumerate(texts)]).images
        found = judge.score(torch.stack(list(images)), [case.prompt for case in cases])
        scores.append(sum(found) / len(found))
    assert scores[1] > scores[0] + 0.04


def test_swapped_pivots_are_those_of_other_prompts(tmp_path):
    folder = save(tmp_path / "tiny")
    prompts = ["a red circle", "a blue star", "two rings"]
    others = dict(zip(prompts, [*prompts[1:], prompts[0]], strict=True))
    own, swapped = PripRewriter(folder), SwappedPivots(folder, others)
    pivots = own.predict_pivots(own.encode_prompts(prompts)[0])
    moved = swapped.predict_pivots(swapped.encode_prompts(prompts[:2])[0])
    assert sorted(moved) == sorted(prompts[:2])
    assert all(torch.allclose(moved[prompt], pivots[others[prompt]], atol=1e-5) for prompt in moved)
    assert swapped.fingerprint != own.fingerprint
    rewrites = swapped.rewrite(prompts)
    assert all(row[0].prompt.startswith(prompt) for row, prompt in zip(rewrites, prompts, strict=True))


def test_a_log_is_drawn_and_scored_once(tmp_path, monkeypatch):

    monkeypatch.setattr(recipe, "PER_TASK", 1)
    monkeypatch.setattr(recipe, "EACH", 2)
    log = build(tmp_path, "log")
    text = log.read_text()
    assert text.count("\n") == 12 and text.count("shapeworld-preference") == 12
    assert build(tmp_path, "log") == log and log.read_text() == text
