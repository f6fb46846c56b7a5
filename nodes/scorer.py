"""Reward Scorer: one score per image, the best image, and all images ranked."""

from __future__ import annotations

import json

from comfy_api.latest import io

from . import sockets
from .loaders import check_prompt


class RewardScorer(io.ComfyNode):
    """Scores by `backend/core/scoring.py`; an image's score does not depend on its batch."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseRewardScorer",
            display_name="Reward Scorer",
            category=sockets.CATEGORY,
            description="Scores each image against your prompt and ranks them.",
            search_aliases=["ImageReward", "HPSv2", "PickScore", "CLIP score", "aesthetic", "rank images"],
            inputs=[
                io.Image.Input("images", tooltip="A batch of any size; each image gets its own score."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="Your ORIGINAL prompt, not the rewrite: what the images should show.",
                ),
                sockets.Judge.Input("judge", tooltip="From Load Judge."),
            ],
            outputs=[
                io.Image.Output("best_image", tooltip="The image with the best score."),
                io.Image.Output("ranked_images", tooltip="All images, best first."),
                io.Float.Output("scores", is_output_list=True, tooltip="One per image, in input order."),
                io.Int.Output("best_index", tooltip="Index of the best image in the batch, from 0."),
                io.String.Output("report", tooltip="Scores and verdicts as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, prompt: str, judge) -> io.NodeOutput:
        from ..backend.core.interfaces import Critic
        from ..backend.core.scoring import image_scores, rank
        from .memory import load_to_device
        from .reports import score_scale

        prompts = [check_prompt(prompt)] * len(images)
        load_to_device(judge)
        pictures = images[..., :3].float().cpu()
        scores = image_scores(judge, pictures, prompts)
        order = rank(judge.spec, dict(enumerate(scores)))
        report = {
            "judge": judge.spec.name,
            **score_scale(judge.spec),
            "prompt": prompt,
            "scores": scores,
            "ranking": order,
        }
        if isinstance(judge, Critic):
            report["critiques"] = [verdict.critique for verdict in judge.criticize(pictures, prompts)]
        return io.NodeOutput(
            images[order[:1]],
            images[order],
            scores,
            order[0],
            json.dumps(report, indent=2),
            ui={"reprise_scores": [report]},
        )
