"""Pipelines that no table knows, tiny and at random weights: exact, whatever they look like inside."""

from __future__ import annotations

import copy

import pytest
import torch

from reprise.backend.core.errors import BadInput, Interrupted, RenderFailed
from reprise.backend.core.types import InitImage, Job
from reprise.backend.lab.pipelines.every import EVERY, SIDE, SIDES
from reprise.backend.lab.pipelines.known import KNOWN
from reprise.backend.lab.pipelines.recent import RECENT
from reprise.backend.renderers.diffusers import call
from reprise.backend.renderers.diffusers.devices import models_of
from reprise.backend.renderers.diffusers.prompts import PromptEncoder
from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer

# Prompts of different lengths: their embeddings have different shapes in most of these pipelines.
JOBS = [Job("a red cat", 11), Job("two blue dogs", 12), Job("a red cat", 13), Job("one egg", 14)]
STEPS = 4
# Those that `make test` draws: lists of tensors, prompts of different lengths, ids with a batch, a cache.
SHORT = ("z-image", "qwen-image", "flux2-klein", "qwen-image-2.1", "sana-sprint", "flux3")
# They want packages that are not installed.
NOT_DRAWN = ("prx", "prx-pixel", "omnigen")
EACH = [
    pytest.param(name, marks=[] if name in SHORT else pytest.mark.long)
    for name in EVERY
    if name not in (*KNOWN, *NOT_DRAWN)
]
MOST_USED = [pytest.param(n, marks=[] if n in SHORT[:4] else pytest.mark.long) for n in (*RECENT, "sd3")]


@pytest.fixture(scope="module")
def tiny():
    """name -> its pipeline, which a render leaves as it was."""
    built = {}

    def get(name: str):
        if name not in built:
            torch.manual_seed(0)
            built[name] = EVERY[name]()
            built[name].set_progress_bar_config(disable=True)
        return built[name]

    return get


def renderer(pipe, name: str, **settings):
    return DiffusersRenderer(pipe, **{"steps": STEPS, "size": SIDES.get(name, SIDE), "chunk": 1, **settings})


def check_exact(draw, cuts):
    """Pruned, alone and regrouped candidates equal those of the whole batch to the bit."""
    full = draw.render(JOBS)
    watcher = cuts({1: [0, 1, 3], 2: [1, 3], STEPS: [1, 3]})
    pruned = draw.render(JOBS, watcher)
    assert pruned.pruned_at == [2, None, 1, None]
    assert all(torch.equal(pruned.images[i], full.images[i]) for i in (1, 3))
    rows = full.denoiser_rows // (4 * STEPS)
    assert full.denoiser_rows_full == pruned.denoiser_rows_full == full.denoiser_rows == 4 * STEPS * rows
    assert pruned.denoiser_rows == (4 + 3 + 2 + 2) * rows
    assert [(step, shown) for step, shown, _ in watcher.seen] == [
        (1, [0, 1, 2, 3]),
        (2, [0, 1, 3]),
        (STEPS, [1, 3]),
    ]
    assert torch.equal(draw.render([JOBS[3]]).images[0], full.images[3])
    assert torch.equal(draw.render([JOBS[3], JOBS[0]]).images[1], full.images[0])
    pictures = torch.stack(full.images)
    # At the last step the predicted picture is the picture, but for rounding to 8 bits.
    away = [(seen[2][-1] - pictures[3]).abs().max() for seen in watcher.seen]
    assert away[-1] <= 0.5 / 255 + 1e-6 < away[0]
    assert pictures.std() > 0.05 and not torch.equal(pictures[0], pictures[2])
    return full


@pytest.mark.parametrize("name", EACH)
def test_candidates_are_exact_and_the_pipelines_own(name, tiny, cuts):
    pipe = tiny(name)
    draw = renderer(pipe, name)
    full = check_exact(draw, cuts)
    arguments = draw.call_arguments([JOBS[1].prompt], [torch.Generator().manual_seed(JOBS[1].seed)])
    plain = call.invoke(draw.prepare([JOBS[1]], [torch.Generator()])[0], arguments)[0]
    # Its rows are evaluated two at once, so they differ by rounding beside that to 8 bits.
    assert (plain - full.images[1]).abs().max() <= 0.5 / 255 + 1e-4
    assert all("forward" not in vars(module) for module in draw.denoisers)
    assert "encode_prompt" not in vars(pipe)


@pytest.mark.parametrize("name", [pytest.param(*one.values, marks=pytest.mark.long) for one in MOST_USED])
def test_bfloat16_is_exact_too(name, tiny, cuts):
    check_exact(renderer(copy.deepcopy(tiny(name)), name, dtype="bfloat16"), cuts)


def test_the_last_preview_is_the_picture_in_half_precision(tiny, cuts):
    """FLUX.2 predicted 2.5/255 beside its own picture: x0 and the sampler's last step round differently."""
    draw = renderer(copy.deepcopy(tiny("flux2")), "flux2", dtype="bfloat16")
    watcher = cuts({STEPS: [0, 1]})
    pictures = draw.render(JOBS[:2], watcher).images
    assert (watcher.seen[-1][2] - torch.stack(pictures)).abs().max() <= 0.5 / 255 + 1e-6


def test_another_size_than_asked_for_is_refused_before_the_first_step(tiny, monkeypatch):
    """Kandinsky 5 takes the nearest of its own sizes instead, and only logs it."""
    draw = renderer(tiny("kandinsky5"), "kandinsky5", size=(32, 64))
    steps = []
    with pytest.raises(BadInput, match=r"does not draw 32x64, but 64x128; give --size 64x128"):
        draw.render(JOBS[:1], progress=lambda step, of: steps.append(step))
    assert not steps
    draw = renderer(tiny("kandinsky5"), "kandinsky5", size=(64, 128))
    assert draw.render(JOBS[:1]).images[0].shape == (128, 64, 3)
    # Where it cannot be known before: the picture itself is measured.
    draw = renderer(tiny("kandinsky5"), "kandinsky5", size=(32, 64))
    monkeypatch.setattr(call, "check_size_prepared", lambda *_: None)
    with pytest.raises(BadInput, match=r"give --size 64x128"):
        draw.render(JOBS[:1])


def test_a_mask_that_only_some_prompts_have_is_each_prompts_own(tiny):
    """NucleusMoE leaves it out where a prompt fills its length. After such a prompt all of a batch had
    the mask of the first."""
    own = tiny("nucleus").encode_prompt
    pipe = copy.copy(tiny("nucleus"))
    PromptEncoder(pipe).install(pipe)
    assert pipe.encode_prompt(["a photo"])[1] is None
    prompts = ["a red cat", "two blue dogs"]
    mask = pipe.encode_prompt(prompts)[1]
    assert mask.sum(1).tolist() == [306, 310]
    assert torch.equal(mask, torch.cat([own([prompt])[1] for prompt in prompts]))


@pytest.mark.parametrize("name", MOST_USED)
def test_offload_hooks_change_nothing(name, tiny, cuts):
    """accelerate's hooks, which move a module's weights at each forward; here from the CPU to the CPU."""
    from accelerate import cpu_offload

    draw = renderer(tiny(name), name)
    expected = draw.render(JOBS).images
    hooked = copy.deepcopy(tiny(name))
    for part in models_of(hooked).values():
        cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    drawn = renderer(hooked, name)
    assert all(torch.equal(a, b) for a, b in zip(drawn.render(JOBS).images, expected, strict=True))
    cut = drawn.render(JOBS, cuts({2: [1]}))
    assert torch.equal(cut.images[1], expected[1]) and cut.images[0] is None
    assert drawn.denoisers[0]._hf_hook is not None


def test_batches_of_different_shape_differ_by_rounding_only(tiny):
    for name in ("z-image", "qwen-image"):
        one, other = (renderer(tiny(name), name, chunk=chunk).render(JOBS).images for chunk in (1, 64))
        assert all((a - b).abs().max() <= 1 / 255 + 1e-6 for a, b in zip(one, other, strict=True))


def test_a_pipeline_whose_rows_cannot_be_masked_is_pruned_all_the_same(tiny, cuts):
    """Qwen-Image-2.1 passes its denoiser a cache, so each candidate is drawn by its own call, in step."""
    draw = renderer(tiny("qwen-image-2.1"), "qwen-image-2.1")
    told = []
    cut = draw.render(JOBS, cuts({2: [3]}), lambda step, of: told.append((step, of)))
    assert draw.layout is None and cut.pruned_at == [2, 2, 2, None]
    assert cut.denoiser_rows == 4 * 2 + 2 and cut.denoiser_rows_full == 4 * STEPS
    assert told == sorted(told) and told[-1][0] <= STEPS
    steps = []
    draw.render(JOBS, progress=lambda step, of: steps.append(step))
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["qwen-image", "qwen-image-2.1"])
def test_an_interrupt_ends_all_batches(name, tiny, cuts):
    import threading

    draw = renderer(tiny(name), name)
    before = threading.active_count()

    def stop(step, of):
        if step == 2:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted, match="stopped"):
        draw.render(JOBS, cuts({1: [0, 1, 2, 3]}), stop)
    assert threading.active_count() == before
    assert all("forward" not in vars(module) for module in draw.denoisers)
    watcher = cuts({1: [0]})
    watcher.look = lambda step, rows, previews: [9]
    with pytest.raises(RenderFailed, match=r"rows \[9\] that were not shown"):
        draw.render(JOBS, watcher)
    assert threading.active_count() == before


def test_image_to_image_needs_no_table_either(tiny, cuts):
    draw = renderer(tiny("z-image"), "z-image")
    assert draw.capabilities.image_to_image
    init = InitImage(draw.render(JOBS[:1]).images[0], 0.5)
    jobs = [Job(job.prompt, job.seed, init) for job in JOBS]
    full, cut = draw.render(jobs), draw.render(jobs, cuts({3: [1, 2]}))
    assert cut.pruned_at == [3, None, None, 3] and full.denoiser_rows == 4 * 2 * 2
    assert all(torch.equal(cut.images[i], full.images[i]) for i in (1, 2))
    assert not torch.equal(full.images[0], draw.render(JOBS[:1]).images[0])
