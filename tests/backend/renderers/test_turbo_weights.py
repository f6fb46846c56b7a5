"""The committed few-step renderer: loaded with its checksums, exact under pruning, and as its card says."""

from __future__ import annotations

import pytest
import torch

from reprise.backend.core.types import Job
from reprise.backend.evaluation.shapeworld import oracle_prompt
from reprise.backend.renderers.shapeworld import TURBO_WEIGHTS, ShapeWorldTurboRenderer
from reprise.backend.rewards.shapeworld import ShapeWorldStrict
from reprise.backend.shapeworld.prompts import sample_prompts
from reprise.backend.storage.checksums import CHECKSUMS, check_folder

LEAST = 0.75  # share right, of 24


@pytest.fixture(scope="module")
def renderer():
    return ShapeWorldTurboRenderer(chunk=1)


def test_the_folder_is_as_its_checksums_say():
    check_folder(TURBO_WEIGHTS)
    listed = (TURBO_WEIGHTS / CHECKSUMS).read_text()
    assert all(f"{part}/" in listed for part in ("transformer", "text_encoder", "vae", "tokenizer"))
    files = [file for file in TURBO_WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8e6


def test_a_candidate_costs_one_row_a_step(renderer):
    assert (renderer.steps, renderer.guided, renderer.width) == (4, False, 128)
    assert renderer.render([Job("a red circle", 0)]).denoiser_rows == 4


def test_survivors_are_the_pictures_of_the_unpruned_run(renderer, cuts):
    jobs = [Job("a photo of two stars", seed) for seed in range(4)]
    full, pruned = renderer.render(jobs), renderer.render(jobs, cuts({1: [0, 2, 3], 2: [2]}))
    assert pruned.pruned_at == [2, 1, None, 2] and pruned.denoiser_rows == 4 + 3 + 1 + 1
    assert torch.equal(pruned.images[2], full.images[2])
    assert torch.equal(renderer.render([jobs[2]]).images[0], full.images[2])


@pytest.mark.parametrize("steps", [4, 8])
def test_spelled_out_prompts_are_drawn_as_the_card_says(steps):
    """24 held-out prompts, each spelled out; the card has the figures on more of them."""
    cases = sample_prompts("held-out", 4, seed=3)
    jobs = [Job(oracle_prompt(case, 5), 5) for case in cases]
    images = torch.stack(ShapeWorldTurboRenderer(steps=steps).render(jobs).images)
    scores = ShapeWorldStrict().score(images, [case.prompt for case in cases])
    assert sum(scores) / len(scores) >= LEAST
