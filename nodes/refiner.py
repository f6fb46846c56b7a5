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
                io.String.Input("prompt", multiline=True, default="", dynamic_prompts=True,
                                tooltip="What the picture shows, in your own few words."),
                sockets.Refiner.Input("refiner", tooltip="From Load Refiner."),
                io.Int.Input("variants", default=1, min=1, max=64,
                             tooltip="1: the model's best single refinement. More: that many different ones, "
                                     "as a list; what follows in the graph runs once for each."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=True,
                             tooltip="The same seed gives the same refinements. No effect with one variant."),
            ],
            outputs=[
                io.String.Output("prompt", display_name="prompt", is_output_list=True,
                                 tooltip="The refined prompts, for CLIP Text Encode."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, prompt: str, refiner, variants: int, seed: int) -> io.NodeOutput:
        return io.NodeOutput([a.prompt for a in ask(refiner, check_prompt(prompt), variants, seed)])
