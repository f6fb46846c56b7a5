"""aMUSEd's steps of single rows: who draws from which generator, what is seen, what is cut."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from reprise.backend.core.errors import CheckpointError, RenderFailed
from reprise.backend.core.types import Job
from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer
from reprise.backend.renderers.diffusers.tokens import step_rows, uses_masked_tokens

JOBS = [Job("a red cat", 21), Job("two dogs", 22), Job("one egg", 23)]
CODES, MASK, STEPS = 6, 6, 4


def scheduler(schedule: str = "cosine", steps: int = STEPS):
    from diffusers import AmusedScheduler

    made = AmusedScheduler(mask_token_id=MASK, masking_schedule=schedule)
    made.set_timesteps(steps, (2, 0))
    return made


def generators(*seeds: int):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def walk(rows: list[int], seeds=(1, 2, 3), schedule: str = "cosine"):
    """(tokens after each step, predictions of each step) of `rows` among three, on fixed logits."""
    made, dice = scheduler(schedule), generators(*seeds)
    tokens = torch.full((3, 4, 4), MASK)
    logits = torch.randn(STEPS, 3, CODES, 4, 4, generator=torch.Generator().manual_seed(0))
    kept, predicted = [], []
    for step, timestep in enumerate(made.timesteps):
        result = step_rows(made.step, logits[step], timestep, tokens, rows, dice)
        tokens = result.prev_sample
        kept.append(tokens)
        predicted.append(result.pred_original_sample)
    return torch.stack(kept), torch.stack(predicted)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_row_equals_the_schedulers_own_single_run(schedule):
    made, whole = scheduler(schedule), walk([0, 1, 2], schedule=schedule)[0]
    logits = torch.randn(STEPS, 3, CODES, 4, 4, generator=torch.Generator().manual_seed(0))
    for row, dice in enumerate(generators(1, 2, 3)):
        tokens = torch.full((1, 4, 4), MASK)
        for step, timestep in enumerate(made.timesteps):
            tokens = made.step(logits[step, row : row + 1], timestep, tokens, generator=dice).prev_sample
            assert torch.equal(tokens[0], whole[step, row])
    assert (whole[:-1] == MASK).flatten(2).any(-1).all() and not (whole[-1] == MASK).any()


def test_rows_are_independent():
    whole, predicted = walk([0, 1, 2])
    alone, _ = walk([1])
    assert torch.equal(alone[:, 1], whole[:, 1])
    assert (alone[:, [0, 2]] == MASK).all()  # nothing is drawn for rows that are not asked for
    others, _ = walk([0, 1, 2], seeds=(7, 2, 9))
    assert torch.equal(others[:, 1], whole[:, 1]) and not torch.equal(others[:, 0], whole[:, 0])
    assert torch.equal(predicted[-1], whole[-1])


def test_a_prediction_is_complete_and_keeps_fixed_tokens():
    kept, predicted = walk([0, 1, 2])
    assert not (predicted == MASK).any()
    for step in range(STEPS):
        settled = kept[step] != MASK
        assert torch.equal(predicted[step][settled], kept[step][settled])
        if step + 1 < STEPS:
            assert torch.equal(predicted[step + 1][settled], kept[step][settled])


def test_logits_that_are_not_finite_are_refused():
    logits = torch.zeros(3, CODES, 4, 4)
    logits[1, 2, 3, 3] = float("nan")
    made, tokens = scheduler(), torch.full((3, 4, 4), MASK)
    timestep = made.timesteps[0]
    with pytest.raises(RenderFailed, match="logits that are not finite"):
        step_rows(made.step, logits, timestep, tokens, [0, 1], generators(1, 2, 3))
    step_rows(made.step, logits, timestep, tokens, [0, 2], generators(1, 2, 3))  # a dead row's are not read


def test_masked_token_schedulers_are_recognised():
    from diffusers import DDIMScheduler

    assert uses_masked_tokens(scheduler()) and not uses_masked_tokens(DDIMScheduler())


def test_survivors_are_exact_whatever_is_pruned_and_when(renderer, cuts, pipelines):
    """And a row that was cut is asked of the transformer no more."""
    draw = renderer("amused", steps=STEPS, chunk=1)
    full = draw.render(JOBS)
    transformer, asked = pipelines("amused").transformer, []
    forward = transformer.forward

    def spy(input_ids, **rest):
        asked.append(len(input_ids))
        return forward(input_ids, **rest)

    plans = [{step: kept} for step in range(1, STEPS) for kept in ([1], [0, 2])]
    plans += [{first: [0, 2], second: [2]} for first, second in ((1, 2), (1, 3), (2, 3))]
    for plan in plans:
        asked.clear()
        transformer.forward = spy
        try:
            pruned = draw.render(JOBS, cuts(plan))
        finally:
            del transformer.forward
        cut = {row: step for step, kept in reversed(plan.items()) for row in range(3) if row not in kept}
        assert pruned.pruned_at == [cut.get(row) for row in range(3)], plan
        assert all(torch.equal(pruned.images[row], full.images[row]) for row in range(3) if row not in cut)
        rows = 2 * sum(cut.get(row, STEPS) for row in range(3))
        assert sum(asked) == len(asked) == pruned.denoiser_rows == rows
        assert pruned.denoiser_rows_full == full.denoiser_rows == 2 * 3 * STEPS


def test_one_step_and_more_steps_than_tokens_work(renderer):
    """At 8 x 8 pixels 16 tokens: at least one is settled at each step, the last step settles all."""
    for steps in (1, 20):
        drawn = renderer("amused", steps=steps, size=8).render(JOBS[:1])
        assert drawn.images[0].shape == (8, 8, 3) and drawn.denoiser_rows == 2 * steps


def test_without_guidance_each_step_costs_one_row(renderer, pipelines):
    drawn = renderer("amused", guidance=1.0).render(JOBS)
    assert drawn.denoiser_rows == 3 * 3
    plain = pipelines("amused")(
        JOBS[0].prompt,
        num_inference_steps=3,
        width=16,
        height=16,
        guidance_scale=1.0,
        output_type="pt",
        generator=torch.Generator().manual_seed(JOBS[0].seed),
    ).images[0]
    assert torch.allclose(drawn.images[0], plain.permute(1, 2, 0), atol=1.1 / 255)


def test_a_negative_prompt_equals_the_pipelines(renderer, pipelines):
    drawn = renderer("amused", negative_prompt="two dogs").render(JOBS[:1]).images[0]
    plain = pipelines("amused")(
        JOBS[0].prompt,
        negative_prompt="two dogs",
        num_inference_steps=3,
        width=16,
        height=16,
        guidance_scale=3.0,
        output_type="pt",
        generator=torch.Generator().manual_seed(JOBS[0].seed),
    ).images[0]
    assert torch.allclose(drawn, plain.permute(1, 2, 0), atol=1.1 / 255)


def test_defaults_are_the_pipelines_own(pipelines):
    own = DiffusersRenderer(pipelines("amused"))
    assert (own.steps, own.guidance, own.width, own.height) == (12, 10.0, 16, 16)


def test_decoding_is_upcast_if_the_config_says_so(folders, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(folders("amused"), tmp_path / "upcast")
    config = folder / "vqvae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": True}))
    draw = DiffusersRenderer(folder, steps=1, size=16, chunk=1)
    vqvae = draw.pipeline.vqvae.half()
    picture = draw.render(JOBS[:1]).images[0]
    assert vqvae.dtype == torch.float16
    vqvae.float()  # the weights that half precision rounded
    assert torch.equal(picture, draw.render(JOBS[:1]).images[0])


def test_a_lora_of_another_model_is_refused(folders, tmp_path):
    file = tmp_path / "flux.safetensors"
    halves = {f"transformer.x_embedder.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}
    save_file(halves, file)
    with pytest.raises(CheckpointError, match="flux.safetensors is no LoRA of this"):
        DiffusersRenderer(folders("amused"), lora=file)
