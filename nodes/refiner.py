"""PRIP: refines a prompt through the predicted embedding of a preferred picture; describes a picture."""

from __future__ import annotations

from comfy_api.latest import io

from ..backend.core.errors import Unsupported
from . import sockets
from .loaders import check_prompt
from .rewriter import rewrite_prompt, rewrite_view


class PripRefiner(io.ComfyNode):
    """A refiner is a rewriter that gives no reason."""

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
                *sockets.rewriter_inputs(
                    sockets.Refiner.Input("refiner", tooltip="From Load Refiner."), "refinement"
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompt",
                    display_name="prompt",
                    is_output_list=True,
                    tooltip="The refined prompts, for CLIP Text Encode.",
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, prompt: str, refiner, variants: int, seed: int) -> io.NodeOutput:
        found = rewrite_prompt(refiner, check_prompt(prompt), variants, seed)
        texts = [one.prompt for one in found]
        shown = rewrite_view(prompt, texts, [one.reason for one in found], [one.fallback for one in found])
        return io.NodeOutput(texts, ui=shown)


class PripDescribe(io.ComfyNode):
    """PRIP's second half alone, with the embedding of a real picture."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseDescribe",
            display_name="PRIP Describe",
            category=sockets.CATEGORY,
            description="Writes a prompt that draws a picture like this one, with a refiner that has "
            "its vision tower (PRIP).",
            search_aliases=["image to prompt", "interrogate", "caption", "CLIP interrogator", "PRIP"],
            inputs=[
                io.Image.Input("image", tooltip="One picture or a batch."),
                sockets.Refiner.Input(
                    "refiner", tooltip="From Load Refiner: a PRIP model with its vision tower."
                ),
                *sockets.variant_inputs("description"),
            ],
            outputs=[
                io.String.Output(
                    "prompt",
                    display_name="prompt",
                    is_output_list=True,
                    tooltip="The prompts, picture by picture, for CLIP Text Encode.",
                ),
            ],
        )

    @classmethod
    def execute(cls, image, refiner, variants: int, seed: int) -> io.NodeOutput:
        import comfy.model_management as management

        from .memory import load_to_device, manage

        if not refiner.capabilities.describes:
            raise Unsupported("this refiner cannot read pictures; choose a PRIP model in Load Refiner")
        eye = refiner.vision_tower
        if eye.patcher is None:  # it was just loaded
            manage(eye)
        load_to_device(eye, refiner)
        found = refiner.describe(
            image[..., :3],
            variants,
            seed,
            should_stop=lambda: bool(management.throw_exception_if_processing_interrupted()),
        )
        return io.NodeOutput([one.prompt for described in found for one in described])
