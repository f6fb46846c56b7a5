"""PARM Best-of-N: many seeds in one run of the sampler; unpromising ones are pruned, the best is returned."""

from __future__ import annotations

import copy
import json
from typing import Any

import comfy.model_management as management
import comfy.sample
import comfy.samplers
import torch
from comfy_api.latest import io

from ..backend.core.errors import BadInput
from ..backend.core.interfaces import PreviewReward, Reward
from ..backend.core.scoring import judge_for_previews, rank
from ..backend.core.types import Candidate, Cost
from ..backend.search.best_of_n import best_index, check_search, score_candidates
from ..backend.search.pruning import POTENTIAL_THRESHOLD, SCHEDULES, PruningWatcher, schedule_from
from . import sockets
from .loaders import check_prompt
from .memory import load_to_device
from .previews import METHODS, Previewer, PreviewGrid, check_vae, decode_latents
from .reports import score_scale
from .row_mask import ComfyRowMask, check_independent_rows
from .seeds import SeededSampler, first_noise

MAX_CANDIDATES = 256


def _search_inputs() -> list:
    return [
        io.Vae.Input("vae", tooltip="Decodes the finished candidates; must belong to the model."),
        sockets.Judge.Input("judge", tooltip="From Load Judge. It scores previews and finished pictures."),
        io.String.Input(
            "prompt",
            multiline=True,
            default="",
            tooltip="Your ORIGINAL prompt, for the judge: what the picture should show.",
        ),
        io.Int.Input(
            "candidates",
            default=8,
            min=1,
            max=MAX_CANDIDATES,
            tooltip="How many seeds start: seed, seed + 1, …",
        ),
        io.Combo.Input(
            "prune",
            options=list(SCHEDULES),
            default="halving",
            tooltip="Which candidates stop early. halving: the worse part at each look. potential: "
            "those that a vision-language judge finds unlikely to come out right, or with "
            "another judge those far below the best. none: all are finished.",
        ),
        io.Combo.Input(
            "preview",
            options=list(METHODS),
            default="auto",
            advanced=True,
            tooltip="How x0 previews are decoded for the judge. auto: TAESD if its file is "
            "installed, else latent to RGB, else the VAE.",
        ),
        io.Int.Input(
            "chunk",
            default=0,
            min=0,
            max=MAX_CANDIDATES,
            advanced=True,
            tooltip="How many candidates are computed at once; 0: all. It is lowered if memory runs out.",
        ),
        io.Float.Input(
            "potential",
            default=POTENTIAL_THRESHOLD,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="For prune potential with a vision-language judge: candidates stop if their "
            "probability to come out right is below this.",
        ),
        sockets.Judge.Input(
            "preview_judge",
            optional=True,
            tooltip="Scores previews instead of the judge. Not needed with a vision-language "
            "judge, which is asked how a preview will turn out.",
        ),
    ]


def _outputs() -> list:
    return [
        io.Image.Output("best_image"),
        io.Latent.Output("best_latent"),
        io.Image.Output("images", tooltip="All finished candidates, best first."),
        io.Float.Output("scores", is_output_list=True, tooltip="Their scores, best first."),
        io.Int.Output("seed", tooltip="The winner's seed: a plain KSampler with it draws the same picture."),
        io.String.Output("report", tooltip="Seeds, scores, prune steps and costs as JSON."),
    ]


class ParmBestOfN(io.ComfyNode):
    """PARM Best-of-N with the inputs of KSampler."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseParmBestOfN",
            display_name="PARM Best-of-N",
            category=sockets.CATEGORY,
            description="Starts many seeds, stops unpromising ones early and keeps the best (PARM, "
            "arXiv 2501.13926).",
            search_aliases=["best of n", "seed search", "cherry pick", "inference time scaling", "KSampler"],
            inputs=[
                io.Model.Input("model"),
                *sockets.sampler_inputs("The first candidate's seed; candidate i has seed + i."),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input(
                    "latent_image",
                    tooltip="A batch of 1; each candidate starts from it. Its noise mask is kept.",
                ),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01),
                *_search_inputs(),
            ],
            outputs=_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive,
        negative,
        latent_image,
        denoise,
        **search,
    ) -> io.NodeOutput:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        # KSampler's class computes the sigmas, because some samplers leave out the last but one.
        plan = comfy.samplers.KSampler(model, steps, model.load_device, sampler_name, scheduler, denoise)
        sampler = comfy.samplers.sampler_object(sampler_name)
        return search_in_graph(guider, sampler, plan.sigmas, latent_image, seed, **search)


class ParmBestOfNAdvanced(io.ComfyNode):
    """PARM Best-of-N with the inputs of SamplerCustomAdvanced: NOISE, GUIDER, SAMPLER, SIGMAS."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseParmBestOfNAdvanced",
            display_name="PARM Best-of-N (Advanced)",
            category=sockets.CATEGORY,
            description="PARM Best-of-N in place of SamplerCustomAdvanced.",
            search_aliases=["best of n", "SamplerCustomAdvanced", "seed search"],
            inputs=[
                io.Noise.Input("noise", tooltip="RandomNoise: its seed is the first candidate's."),
                io.Guider.Input("guider"),
                io.Sampler.Input("sampler"),
                io.Sigmas.Input("sigmas"),
                io.Latent.Input("latent_image"),
                *_search_inputs(),
            ],
            outputs=_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(cls, noise, guider, sampler, sigmas, latent_image, **search) -> io.NodeOutput:
        seed = getattr(noise, "seed", None)
        if seed is None or type(noise).__name__ == "Noise_EmptyNoise":
            raise BadInput("the noise has no seed, so all candidates would be equal; connect RandomNoise")
        return search_in_graph(guider, sampler, sigmas, latent_image, seed, **search)


def search_in_graph(
    guider: Any,
    sampler: Any,
    sigmas: torch.Tensor,
    latent_image: dict,
    seed: int,
    *,
    vae: Any,
    judge: Any,
    prompt: str,
    candidates: int,
    prune: str,
    preview: str,
    chunk: int,
    potential: float = POTENTIAL_THRESHOLD,
    preview_judge: Any = None,
) -> io.NodeOutput:
    """The best of `candidates` seeds in one run of the sampler, chosen as in `backend/search`.

    `sigmas` (steps + 1,); the other arguments are the node's inputs. Raises BadInput.
    """
    user_prompt = check_prompt(prompt)
    check_search(candidates, seed)
    steps = len(sigmas) - 1
    if steps < 1:
        raise BadInput(
            "expected at least 1 step to sample, got 0; set steps to 1 or more and denoise above 0"
        )
    check_vae(guider.model_patcher, vae)
    if candidates > 1:
        conds = getattr(guider, "original_conds", {})
        check_independent_rows(
            guider.model_patcher.model_options, [one for group in conds.values() for one in group]
        )
    latents, mask = _latents(guider.model_patcher, latent_image, candidates)
    found = [Candidate(i, seed + i, user_prompt) for i in range(candidates)]
    preview_scorer: Reward = judge_for_previews(preview_judge or judge)
    cost = Cost()
    if prune == "potential" and isinstance(preview_scorer, PreviewReward):
        prune = f"potential:{potential}"
    schedule = schedule_from(prune, candidates, steps, preview_scorer)
    row_mask = ComfyRowMask(candidates, chunk or None)
    grid, decode = PreviewGrid(candidates, steps), Previewer(guider.model_patcher, vae, preview)
    watcher = PruningWatcher(preview_scorer, user_prompt, found, schedule, cost)
    load_to_device(judge, *([preview_judge] if preview_judge and schedule.preview_steps else []))

    def callback(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        alive, done = row_mask.alive, step + 1
        if done not in schedule.preview_steps or done >= steps:
            grid.show(done)
            return
        pictures = decode(x0[alive])
        kept = watcher.look(done, alive, pictures)
        for row in set(alive) - set(kept):
            found[row].pruned_at = done
        grid.pruned |= set(alive) - set(kept)
        grid.show(done, alive, pictures)
        row_mask.alive = kept

    masked = copy.copy(guider)  # the user's guider is not changed
    masked.model_options = copy.copy(guider.model_options)
    masked.model_patcher = guider.model_patcher.clone()
    masked.model_options = masked.model_patcher.model_options
    row_mask.attach(masked.model_options)
    samples = masked.sample(
        first_noise(latents, seed, candidates),
        latents,
        SeededSampler(sampler, [c.seed for c in found]),
        sigmas,
        denoise_mask=mask,
        callback=callback,
        disable_pbar=False,
        seed=seed,
    )
    samples = samples.to(management.intermediate_device())
    cost.denoiser_rows, cost.denoiser_rows_full = row_mask.rows, row_mask.rows_full
    finished = [c for c in found if c.pruned_at is None]
    images = decode_latents(vae, samples[[c.index for c in finished]])
    for candidate, image in zip(finished, images, strict=True):
        candidate.image = image
    score_candidates(judge, user_prompt, finished, cost)
    return _result(found, best_index(found, judge), samples, judge, user_prompt, latent_image, cost)


def _latents(model: Any, latent_image: dict, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Latents (count, …) to start from, and the latent's noise mask or None. Raises BadInput."""
    samples = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])
    if len(samples) not in (1, count):
        raise BadInput(
            f"expected a latent batch of 1, or one for each of the {count} candidates, got {len(samples)}; "
            "set batch_size to 1"
        )
    repeats = count if len(samples) == 1 else 1
    return samples.repeat(repeats, *[1] * (samples.ndim - 1)), latent_image.get("noise_mask")


def _result(
    found: list[Candidate],
    best: int,
    samples: torch.Tensor,
    judge: Any,
    user_prompt: str,
    latent_image: dict,
    cost: Cost,
) -> io.NodeOutput:
    scores = {c.index: c.score for c in found if c.score is not None}
    ranked = [found[i] for i in rank(judge.spec, scores)]
    images = torch.stack([c.image for c in ranked if c.image is not None])
    report = {
        "judge": judge.spec.name,
        **score_scale(judge.spec),
        "prompt": user_prompt,
        "best": best,
        "seed": found[best].seed,
        "candidates": [
            {
                "index": c.index,
                "seed": c.seed,
                "score": c.score,
                "pruned_at": c.pruned_at,
                "preview_scores": c.preview_scores,
                "preview_clarity": c.preview_clarity,
            }
            for c in found
        ],
        "cost": vars(cost),
    }
    latent = {**latent_image, "samples": samples[best : best + 1]}
    return io.NodeOutput(
        images[:1],
        latent,
        images,
        [c.score for c in ranked],
        found[best].seed,
        json.dumps(report, indent=2),
        ui={"reprise_parm": [report]},
    )
