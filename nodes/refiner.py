"""PRIP Refiner: a prompt, refined through the embedding of an imagined preferred picture."""

from __future__ import annotations

from comfy_api.latest import io

from . import sockets
from .loaders import check_prompt
from .rewriter import ask


class PripRefiner(io.ComfyNode):
    """A refiner is a rewriter that has no words between prompt and prompt: it gives no reason."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseRefiner",
            display_name="PRIP Refiner",
            category=sockets.CATEGORY,
            description="Imagines the picture that people would prefer, as an embedding, and writes the "
                        "prompt that describes it (PRIP).",
            search_aliases=["prompt refiner", "prompt enhancer", "promptist", "PRIP"],
            inputs=[
                *sockets.rewriting(
                    sockets.Refiner.Input("refiner", tooltip="From Load Refiner."), "refinement"
                ),
            ],
            outputs=[
                io.String.Output("prompt", display_name="prompt", is_output_list=True,
                                 tooltip="The refined prompts, for CLIP Text Encode."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, prompt: str, refiner, variants: int, seed: int) -> io.NodeOutput:
        return io.NodeOutput([a.prompt for a in ask(refiner, check_prompt(prompt), variants, seed)])
