"""Reflection Loop: draw a picture, judge it, rewrite the prompt by the critique, and draw again.

Source: PARM++ (arXiv 2501.13926, section 3.4), as in `backend/search/reflection.py`. The rounds are node
expansion: each round consists of stock nodes (CLIPTextEncode, KSampler, VAEDecode) and one judging node,
which ends the loop or expands into the next round. So LoRAs, progress, interrupts and memory work as in
ComfyUI.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..backend.core.errors import BadInput
from ..backend.core.interfaces import Critic
from ..backend.core.scoring import image_scores, rank, verdicts
from ..backend.search.reflection import Correction, critique_warning
from . import sockets
from .loaders import check_prompt
from .memory import load_to_device
from .reports import LiveReport, save_thumbnail, score_scale
from .rewriter import rewrite_prompt_async

log = logging.getLogger(__name__)

STEP = "RepriseReflectionStep"


def _inputs() -> list:
    """The inputs of every round. The judging node has them too, and passes their links on."""
    return [
        io.Model.Input("model"),
        io.Clip.Input("clip"),
        io.Vae.Input("vae"),
        io.Conditioning.Input("negative"),
        io.Latent.Input(
            "latent_image",
            tooltip="A batch of 1: the size of the picture or, with denoise below 1, what to start "
            "from. Its noise mask is kept.",
        ),
        sockets.Rewriter.Input(
            "rewriter",
            tooltip="From Load Rewriter. It corrects the prompt by what the judge finds wrong. "
            "PRIP and Promptist models ignore that.",
        ),
        sockets.Judge.Input("judge", tooltip="From Load Judge. It must be able to say what is wrong."),
        io.String.Input(
            "prompt",
            multiline=True,
            default="",
            tooltip="Your ORIGINAL prompt: what the picture should show.",
        ),
        io.Int.Input(
            "rounds",
            default=3,
            min=0,
            max=16,
            tooltip="The most corrections; the loop stops as soon as the judge is satisfied.",
        ),
        *sockets.sampler_inputs("Round r draws with seed + r."),
        io.Combo.Input(
            "correction",
            options=[correction.value for correction in Correction],
            default=Correction.DRAW_AGAIN.value,
            tooltip="draw again: a new picture from the corrected prompt. image to image: the best "
            "picture so far is drawn over.",
        ),
        io.Float.Input(
            "strength",
            default=0.75,
            min=0.01,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Denoise of image to image; 1 keeps nothing of the picture.",
        ),
    ]


def _denoise() -> io.Input:
    """The last input, and optional: workflows that were saved without it still run."""
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.01,
        max=1.0,
        step=0.01,
        optional=True,
        advanced=True,
        tooltip="Denoise of the first picture and of those that are drawn again. Below 1 they "
        "start from latent_image.",
    )


def _outputs() -> list:
    return [
        io.Image.Output("image", tooltip="The best picture of all rounds."),
        io.String.Output("prompt", tooltip="The prompt that drew it."),
        io.Image.Output("images", tooltip="The picture of each round, in order."),
        io.String.Output("history", tooltip="Rounds, prompts, scores, verdicts and critiques as JSON."),
    ]


class ReflectionLoop(io.ComfyNode):
    """Draws once, then corrects until the judge is satisfied or the rounds are used up."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseReflectionLoop",
            display_name="Reflection Loop",
            category=sockets.CATEGORY,
            description="Draws, asks the judge what is wrong, rewrites the prompt and draws again (PARM++).",
            search_aliases=["critique", "self correct", "fix prompt", "refine image", "retry"],
            inputs=[
                *_inputs(),
                io.String.Input(
                    "first_prompt",
                    optional=True,
                    force_input=True,
                    tooltip="The prompt of the first picture, for example from RePrompt Rewriter. Without "
                    "it, the rewriter's own first rewrite.",
                ),
                _denoise(),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
            enable_expand=True,
        )

    @classmethod
    async def execute(
        cls, prompt, rewriter, judge, latent_image, rounds, seed, first_prompt=None, denoise=1.0, **settings
    ) -> io.NodeOutput:
        graph = GraphBuilder()  # before the first await: its ids depend on the node that is running
        user_prompt = check_prompt(prompt)
        if not isinstance(judge, Critic):
            raise BadInput(
                f"reflection needs a judge that can say what is wrong; {judge.spec.name!r} only scores: "
                "choose another in Load Judge"
            )
        if len(latent_image["samples"]) != 1:
            raise BadInput(
                f"expected a latent batch of 1, got {len(latent_image['samples'])}; set batch_size to 1"
            )
        first = first_prompt or await _rewrite(rewriter, user_prompt, "", seed, 0)
        if warning := critique_warning(rewriter):
            log.warning("%s", warning)
        links = _links(cls.hidden)
        links.pop("first_prompt", None)
        report = LiveReport(
            id=graph.prefix,
            judge=judge.spec.name,
            **score_scale(judge.spec),
            prompt=user_prompt,
            best=0,
            rounds=[],
        )
        return _expand(
            links,
            first,
            seed,
            latent_image=links["latent_image"],
            denoise=denoise,
            history=[],
            report=report,
            graph=graph,
            ui={"reprise_reflection": [report.shown]},
        )


class ReflectionStep(io.ComfyNode):
    """The verdict of one round. Only the loop creates this node."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=STEP,
            display_name="Reflection Step",
            category=f"{sockets.CATEGORY}/internal",
            description="One round of a Reflection Loop, which creates this node itself.",
            inputs=[
                *_inputs(),
                io.Image.Input("image"),
                io.Image.Input("images", optional=True),
                io.String.Input("history", default="[]"),
                io.Custom("REPRISE_REPORT").Input("report"),
                _denoise(),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            enable_expand=True,
            is_dev_only=True,
        )

    @classmethod
    async def execute(
        cls,
        prompt,
        rewriter,
        judge,
        vae,
        rounds,
        seed,
        image,
        history,
        correction,
        strength,
        report,
        latent_image,
        images=None,
        denoise=1.0,
        **settings,
    ) -> io.NodeOutput:
        import torch

        graph = GraphBuilder()
        if not isinstance(report, LiveReport):  # in a workflow by hand
            raise BadInput(
                "only Reflection Loop can make a Reflection Step; put a Reflection Loop in its place"
            )
        past = json.loads(history)
        picture = image[:1, ..., :3].float().cpu()
        load_to_device(judge)
        score = image_scores(judge, picture, [prompt])[0]
        (verdict,) = verdicts(judge, picture, [prompt])
        past[-1] |= {
            "score": score,
            "verdict": "yes" if verdict.satisfied else "no",
            "critique": verdict.critique,
        }
        every = picture if images is None else torch.cat([images.float().cpu(), picture])
        best = rank(judge.spec, {i: drawn["score"] for i, drawn in enumerate(past)})[0]
        rounds_shown = [
            *report.shown["rounds"][: len(past) - 1],
            {**past[-1], "picture": save_thumbnail(picture)},
        ]
        report.shown.update(best=best, rounds=rounds_shown)
        ui = {"reprise_reflection": [{**report.shown, "part": True}]}
        if past[best]["verdict"] == "yes" or len(past) > rounds:
            return io.NodeOutput(
                every[best : best + 1], past[best]["prompt"], every, json.dumps(past, indent=2), ui=ui
            )
        number = len(past)
        mended = await _rewrite(rewriter, prompt, past[best]["critique"], seed, number)
        links = _links(cls.hidden)
        # The pictures of all rounds so far are passed on as a batch.
        batch = links["image"]
        if images is not None:
            batch = graph.node("ImageBatch", image1=links["images"], image2=batch).out(0)
        links["images"] = batch
        start = links["latent_image"]
        if correction == Correction.IMAGE_TO_IMAGE:
            shown = graph.node("ImageFromBatch", image=batch, batch_index=best, length=1)
            start, denoise = graph.node("VAEEncode", pixels=shown.out(0), vae=links["vae"]).out(0), strength
            if (mask := latent_image.get("noise_mask")) is not None:
                start = graph.node("SetLatentNoiseMask", samples=start, mask=mask).out(0)
        return _expand(
            links,
            mended,
            seed,
            latent_image=start,
            denoise=denoise,
            history=past,
            report=report,
            graph=graph,
            ui=ui,
        )


def _links(hidden: Any) -> dict[str, Any]:
    """The node's inputs as they are in the graph: links stay links."""
    return dict(hidden.dynprompt.get_node(hidden.unique_id)["inputs"])


async def _rewrite(rewriter: Any, prompt: str, critique: str, seed: int, number: int) -> str:
    """The rewrite of round `number`: the most likely one in rounds 0 and 1, then sampled, so rounds
    differ."""
    return (await rewrite_prompt_async(rewriter, prompt, max(1, number), seed, critique))[-1].prompt


def _expand(
    links: dict[str, Any],
    text: str,
    seed: int,
    *,
    latent_image: Any,
    denoise: float,
    history: list[dict],
    report: LiveReport,
    graph: Any,
    ui: dict,
) -> io.NodeOutput:
    """One round as nodes: encode, sample, decode, judge."""
    number = len(history)
    positive = graph.node("CLIPTextEncode", text=text, clip=links["clip"])
    sampled = graph.node(
        "KSampler",
        model=links["model"],
        seed=seed + number,
        steps=links["steps"],
        cfg=links["cfg"],
        sampler_name=links["sampler_name"],
        scheduler=links["scheduler"],
        positive=positive.out(0),
        negative=links["negative"],
        latent_image=latent_image,
        denoise=denoise,
    )
    picture = graph.node("VAEDecode", samples=sampled.out(0), vae=links["vae"])
    past = [*history, {"round": number, "seed": seed + number, "prompt": text}]
    given = {"image": picture.out(0), "history": json.dumps(past), "report": report}
    step = graph.node(STEP, **{**links, **given})
    return io.NodeOutput(*(step.out(i) for i in range(4)), ui=ui, expand=graph.finalize())
