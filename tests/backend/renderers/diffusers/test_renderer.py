"""The diffusers renderer on tiny pipelines of every family: exactness, counting, restoring, refusing."""

from __future__ import annotations

import functools

import pytest
import torch

from reprise.backend.core.errors import BadInput, Interrupted, RenderFailed, Unsupported
from reprise.backend.core.types import Job
from reprise.backend.renderers.diffusers.drawing import Drawing
from reprise.backend.storage.cache import Cache

from ..conftest import FAMILIES, ROWS, SETTINGS

JOBS = [Job("a red cat", 11), Job("two blue dogs", 12), Job("a red cat", 13), Job("one egg", 14)]
# Of pictures of 8 bits, between batches of different shape: how many pixels may differ, by one level.
LEVEL = 1 / 255


def same(image, other) -> bool:
    return torch.equal(image, other)


def near(image, other) -> bool:
    return bool((image - other).abs().max() <= LEVEL + 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_candidate_is_the_pipelines_own_picture(family, renderer, pipelines):
    """The plain pipeline, asked for one prompt with one seed, draws what the renderer draws in a batch."""
    drawn = renderer(family, chunk=1).render(JOBS)
    pipe, settings = pipelines(family), dict(SETTINGS[family])
    if "guidance" in settings:
        settings["guidance_scale"] = settings.pop("guidance")
    if "true_cfg" in settings:
        settings |= {"true_cfg_scale": settings.pop("true_cfg"), "negative_prompt": ""}
    if family == "pixart":
        settings |= {"use_resolution_binning": False, "clean_caption": False}
    for job, image in zip(JOBS, drawn.images, strict=True):
        plain = pipe(
            job.prompt,
            num_inference_steps=3,
            width=16,
            height=16,
            output_type="np",
            generator=torch.Generator().manual_seed(job.seed),
            **settings,
        ).images[0]
        assert near(torch.from_numpy(plain), image)
    pictures = torch.stack(drawn.images)
    assert pictures.shape == (4, 16, 16, 3) and 0 <= pictures.min() and pictures.max() <= 1
    assert pictures.std() > 0.05  # not all grey
    assert same((pictures * 255).round() / 255, pictures)
    assert not near(pictures[0], pictures[2])  # one prompt, two seeds


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_and_guidance_change_the_picture(family, renderer):
    draw = renderer(family)
    one, other = draw.render([Job("a red cat", 1), Job("two blue dogs", 1)]).images
    assert not same(one, other)
    option = "true_cfg" if family == "flux_true_cfg" else "guidance"
    stronger = renderer(family, **{option: 9.0}).render([Job("a red cat", 1)]).images[0]
    assert not same(one, stronger)


@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_is_exact_and_counted(family, renderer, cuts):
    """chunk=1 makes all evaluations of one shape: equal to the bit, pruned, unpruned, alone, regrouped."""
    draw = renderer(family, chunk=1)
    full = draw.render(JOBS)
    watcher = cuts({1: [0, 1, 3], 2: [1, 3]})
    pruned = draw.render(JOBS, watcher)
    assert pruned.pruned_at == [2, None, 1, None]
    assert pruned.images[0] is None and pruned.images[2] is None
    assert same(pruned.images[1], full.images[1]) and same(pruned.images[3], full.images[3])
    assert full.denoiser_rows == full.denoiser_rows_full == 4 * 3 * ROWS[family]
    assert pruned.denoiser_rows == (4 + 3 + 2) * ROWS[family]
    assert pruned.denoiser_rows_full == full.denoiser_rows
    assert [(step, rows) for step, rows, _ in watcher.seen] == [(1, [0, 1, 2, 3]), (2, [0, 1, 3])]
    assert watcher.seen[1][2].shape == (3, 16, 16, 3)
    alone = draw.render([JOBS[3]])
    assert same(alone.images[0], full.images[3])
    regrouped = draw.render([JOBS[3], JOBS[0]])
    assert same(regrouped.images[1], full.images[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_shapes_differ_by_rounding_only(family, renderer, cuts, monkeypatch):
    """Latents of one batch, of micro-batches of 3, pruned, and alone: within 1e-4 of their spread."""
    finals: list[torch.Tensor] = []
    decode = Drawing.decode

    def spy(self, latents, rows, tiny=None):
        drawn = latents if isinstance(latents, torch.Tensor) else latents[0]  # a step's whole result
        finals.append(drawn[rows].float())  # aMUSEd's are whole numbers
        return decode(self, latents, rows, tiny)

    monkeypatch.setattr(Drawing, "decode", spy)
    renderer(family, chunk=64).render(JOBS)
    renderer(family, chunk=3).render(JOBS)
    renderer(family, chunk=64).render([JOBS[1]])
    renderer(family, chunk=64).render(JOBS, cuts({1: [1]}))
    whole, parts, alone, _, pruned = finals
    for other in (parts[1], alone[0], pruned[0]):
        assert (other - whole[1]).abs().max() <= 1e-4 * whole.std()


@pytest.mark.parametrize("family", FAMILIES)
def test_previews_approach_the_picture(family, renderer, cuts):
    watcher = cuts({1: [0, 1, 2, 3], 4: [0, 1, 2, 3], 5: [0, 1, 2, 3]})
    drawn = torch.stack(renderer(family, steps=5).render(JOBS, watcher).images)
    away = [(previews - drawn).abs().mean() for _, _, previews in watcher.seen]
    assert away[0] > away[1]
    assert away[2] < 0.5 / 255  # at the last step the predicted picture is the picture


@pytest.mark.parametrize("family", ["flux_true_cfg", "sdxl"])
def test_a_run_ends_when_all_rows_are_pruned(family, renderer, cuts):
    steps: list[int] = []
    drawn = renderer(family).render(JOBS, cuts({1: []}), lambda step, of: steps.append(step))
    assert drawn.images == [None] * 4 and drawn.pruned_at == [1] * 4 and steps == [1]
    assert drawn.denoiser_rows == 4 * ROWS[family]
    assert drawn.denoiser_rows_full == 3 * 4 * ROWS[family]


def test_pruning_after_the_last_step_works(renderer, cuts):
    drawn = renderer("sd1").render(JOBS, cuts({3: [2]}))
    assert drawn.pruned_at == [3, 3, None, 3] and drawn.images[2] is not None and drawn.images[0] is None


def state(pipe, denoiser):
    return (
        pipe.scheduler,
        dict(vars(pipe.scheduler)),
        "forward" in vars(denoiser),
        denoiser.forward,
        vars(pipe).get("maybe_free_model_hooks"),
        dict(pipe._progress_bar_config),
        [module.training for module in denoiser.modules()],
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupt_takes_effect_within_a_step_and_restores_all(family, renderer):
    draw = renderer(family)
    pipe, denoiser = draw.pipeline, draw.denoisers[0]
    denoiser.train()  # as a trainer may hand it over; drawing itself is in eval mode
    before, expected = state(pipe, denoiser), draw.render(JOBS[:1]).images[0]
    steps = []

    def stop(step, of):
        steps.append((step, of))
        if step == 2:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted, match="stopped"):
        draw.render(JOBS, progress=stop)
    assert steps == [(1, 3), (2, 3)]
    after = state(pipe, denoiser)
    denoiser.eval()
    assert str(after) == str(before) and after[0] is before[0]
    assert same(draw.render(JOBS[:1]).images[0], expected)


def test_errors_of_callbacks_pass_as_they_are(renderer, cuts, pipelines):
    class HostStop(Exception):
        pass

    def stop(step, of):
        raise HostStop

    with pytest.raises(HostStop):
        renderer("sd3").render(JOBS, progress=stop)
    watcher = cuts({1: [0]})
    watcher.look = lambda step, rows, previews: [7]
    with pytest.raises(RenderFailed, match=r"rows \[7\]"):
        renderer("sd3").render(JOBS, watcher)
    assert "forward" not in vars(pipelines("sd3").transformer)


def test_a_failing_pipeline_is_one_line(renderer):
    draw = renderer("flux")

    def broken(**_):
        raise ValueError("shapes\ndo not fit")

    draw.pipeline.transformer.forward = broken
    try:
        with pytest.raises(RenderFailed, match="FluxPipeline with FlowMatchEuler.*: shapes do not fit"):
            draw.render(JOBS)
    finally:
        del draw.pipeline.transformer.forward
    assert draw.render(JOBS[:1]).images[0] is not None


@pytest.mark.parametrize("family", ["sd1", "amused"])
def test_latents_that_are_not_finite_are_refused(family, renderer):
    draw = renderer(family, guidance={"sd1": 1e38, "amused": 1e39}[family])
    with pytest.raises(RenderFailed, match="not finite"):
        draw.render(JOBS)


def test_the_chunk_halves_when_memory_runs_out(renderer, monkeypatch):
    draw = renderer("sd3", chunk=8)
    forward, sizes = draw.pipeline.transformer.forward, []
    whole = draw.render(JOBS)

    def small(hidden_states, **rest):
        sizes.append(len(hidden_states))
        if len(hidden_states) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(hidden_states=hidden_states, **rest)

    draw.pipeline.transformer.forward = small
    try:
        drawn = draw.render(JOBS)
    finally:
        del draw.pipeline.transformer.forward
    assert sizes[:3] == [8, 4, 2] and max(sizes[3:]) == 2
    assert drawn.denoiser_rows == whole.denoiser_rows
    assert all(near(a, b) for a, b in zip(drawn.images, whole.images, strict=True))


def test_prompts_are_encoded_once(renderer, monkeypatch):
    draw = renderer("flux_true_cfg")
    asked = []
    encode = type(draw.pipeline).encode_prompt

    @functools.wraps(encode)
    def spy(self, **given):
        asked.append(given["prompt"])
        return encode(self, **given)

    monkeypatch.setattr(type(draw.pipeline), "encode_prompt", spy)
    draw.render(JOBS)
    draw.render(JOBS[:2])
    probe = [["a photo"], ["a photo"] * 2]  # before the first picture
    assert sorted(asked) == sorted([*probe, [""], ["a red cat"], ["one egg"], ["two blue dogs"]])


def test_a_negative_prompt_changes_the_picture(renderer):
    plain = renderer("sdxl").render(JOBS[:1]).images[0]
    assert not same(renderer("sdxl", negative_prompt="two dogs").render(JOBS[:1]).images[0], plain)
    with pytest.raises(Unsupported, match="negative prompt needs guidance.*true_cfg > 1"):
        renderer("flux", negative_prompt="two dogs")


def test_sizes_are_drawn_as_requested(renderer):
    drawn = renderer("sd3", size=(24, 16)).render(JOBS[:2]).images[1]
    assert drawn.shape == (16, 24, 3)  # height, width
    assert renderer("flux", size=(24, 16)).render(JOBS[:1]).images[0].shape == (16, 24, 3)
    assert renderer("sdxl", size=None).width == 16  # the model's own
    with pytest.raises(BadInput, match="multiples of 4 pixels; got 17, use 16"):
        renderer("flux", size=17)


def test_a_tiny_decoder_decodes_previews(renderer, cuts, tmp_path):
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        upsampling_scaling_factor=2,
    )
    tiny.save_pretrained(tmp_path / "tiny")
    plain, small = cuts({1: [0]}), cuts({1: [0]})
    one = renderer("sd1").render(JOBS, plain)
    other = renderer("sd1", preview_decoder=tmp_path / "tiny").render(JOBS, small)
    assert same(one.images[0], other.images[0])
    assert small.seen[0][2].shape == (4, 16, 16, 3) and not same(small.seen[0][2], plain.seen[0][2])


def test_the_cache_serves_pictures_and_counts_rows(renderer, cuts, tmp_path):
    cache = Cache(tmp_path)
    draw = renderer("sd1", cache=cache)
    first = draw.render(JOBS[:2])
    again = renderer("sd1", cache=cache).render(JOBS[:3])
    assert again.denoiser_rows == 3 * 2 and again.denoiser_rows_full == 3 * 3 * 2
    assert all(same(a, b) for a, b in zip(first.images, again.images, strict=False))
    draw.render(JOBS, cuts({1: [3]}))
    stored = draw.render([JOBS[3]])
    assert stored.denoiser_rows == 0 and stored.denoiser_rows_full == 6
    other = renderer("sd1", cache=cache, guidance=6.0)
    assert other.fingerprint != draw.fingerprint
    assert other.render(JOBS[:1]).denoiser_rows == 6


def test_the_fingerprint_depends_on_the_weights(renderer, pipelines):
    draw = renderer("pixart")
    assert renderer("pixart").fingerprint == draw.fingerprint
    weight = next(pipelines("pixart").transformer.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[5] += 1
    try:
        assert renderer("pixart").fingerprint != draw.fingerprint
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@pytest.mark.parametrize(
    "job, says",
    [
        (Job("", 1), "blank"),
        (Job(" \n", 1), "blank"),
        (Job("a cat", -1), "seed"),
        (Job("a cat", 2**63), "seed"),
        (Job("a cat", 1.5), "seed"),
        (Job("a cat", True), "seed"),
    ],
)
def test_bad_jobs_are_refused(renderer, job, says):
    with pytest.raises(BadInput, match=says):
        renderer("flux").render([JOBS[0], job])


def test_extreme_jobs_are_drawn(renderer):
    draw = renderer("flux")
    assert draw.render([]).images == []
    assert draw.render([Job("a cat", 0), Job("a cat", 2**63 - 1)]).images[1] is not None
    long = draw.render([Job("red cat " * 5000, 1)])
    assert long.images[0] is not None


def test_a_long_prompt_does_not_flood_the_log(renderer, caplog):
    import logging

    logger = logging.getLogger("diffusers")
    logger.propagate, before = True, logger.propagate
    try:
        renderer("flux").render([Job("blue cat " * 5000, 1)])
    finally:
        logger.propagate = before
    assert caplog.records and all(len(record.getMessage()) < 300 for record in caplog.records)


def test_watched_steps_must_exist(renderer, cuts):
    with pytest.raises(BadInput, match="no step 4 .* 1 to 3"):
        renderer("flux").render(JOBS, cuts({1: [0], 4: [0]}))
    with pytest.raises(BadInput, match="no step 0"):
        renderer("flux").render(JOBS, cuts({0: [0]}))


@pytest.mark.parametrize(
    "family, settings, error, says",
    [
        ("flux", {"steps": 0}, BadInput, "steps"),
        ("flux", {"steps": 2.5}, BadInput, "steps"),
        ("flux", {"chunk": 0}, BadInput, "chunk"),
        ("flux", {"guidance": float("nan")}, BadInput, "guidance"),
        ("flux", {"guidance": -1.0}, BadInput, "guidance"),
        ("flux_true_cfg", {"guidance": 3.5}, Unsupported, "no guidance embedding.*true_cfg=3.5"),
        ("sd1", {"true_cfg": 3.0}, Unsupported, "has no true_cfg; it is guided by guidance=3.0"),
        ("sd1", {"max_sequence_length": 77}, Unsupported, "fixed text length"),
        ("sd1", {"dtype": "int8"}, BadInput, "dtype is one of"),
        ("sd1", {"dtype": "float16"}, Unsupported, "float16 on a CPU"),
        ("sd1", {"device": "gpu"}, BadInput, "device is"),
        ("sd1", {"device": "cpu", "offload": "model"}, Unsupported, "needs a CUDA device"),
        ("sd1", {"size": 0}, BadInput, "size"),
        ("amused", {"size": 18}, BadInput, "AmusedPipeline .* multiples of 4 pixels; got 18, use 16"),
        ("amused", {"true_cfg": 3.0}, Unsupported, "has no true_cfg"),
        ("amused", {"max_sequence_length": 77}, Unsupported, "fixed text length"),
        ("amused", {"guidance": 1.0, "negative_prompt": "a dog"}, Unsupported, "needs guidance"),
        ("amused", {"preview_decoder": "taesd"}, Unsupported, "tokens, which only its own vqvae can decode"),
    ],
)
def test_bad_settings_are_refused(renderer, family, settings, error, says):
    with pytest.raises(error, match=says):
        renderer(family, **settings)
