"""What is known of some families of diffusers' text-to-image pipelines, for training and for a good default
dtype.

Drawing needs no such table: `call.py` reads from any pipeline what it takes. Of the older families training
calls the denoiser itself, so it must know how a family encodes prompts and packs its latents; of the newer
ones it has the pipeline call it (`training/diffusion_dpo/own_call.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.errors import Unsupported

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Family:
    """How a pipeline class encodes prompts, applies guidance, and stores its latents."""

    name: str
    denoiser: str  # name of the component that is evaluated at each step
    # {embedding argument of __call__: its index in encode_prompt's result}
    embeddings: Mapping[str, int] = field(default_factory=dict)
    half: str = "bfloat16"  # half precision that it was trained in or is known to be stable in
    single_encode: bool = False  # encode_prompt makes no negative embeddings (FLUX)
    has_text_length: bool = True  # takes max_sequence_length
    packed: bool = False  # latents are sequences of 2 x 2 patches
    own_call: bool = False  # training evaluates it by the pipeline's own call, and needs nothing of the above

    def encode(self, pipeline: Any, text: str, length: int | None) -> dict[str, Tensor]:
        """One prompt -> its embeddings by argument name, each (1, …)."""
        arguments: dict[str, Any] = {"prompt": text, "device": pipeline._execution_device}
        accepted = inspect.signature(pipeline.encode_prompt).parameters
        # Required if a class has several text encoders; None means the same prompt.
        arguments |= {name: None for name in ("prompt_2", "prompt_3") if name in accepted}
        if "num_images_per_prompt" in accepted:
            arguments["num_images_per_prompt"] = 1
        if not self.single_encode:
            arguments["do_classifier_free_guidance"] = False
        if "clean_caption" in accepted:
            # The cleaning would depend on whether beautifulsoup4 and ftfy are installed.
            arguments["clean_caption"] = False
        if length is not None:
            arguments["max_sequence_length"] = length
        result = pipeline.encode_prompt(**arguments)
        return {name: result[place] for name, place in self.embeddings.items()}

    def unpack(self, pipeline: Any, latents: Tensor, width: int, height: int) -> Tensor:
        """Latents in the sampler's layout -> (B, C, h, w)."""
        if not self.packed:
            return latents
        return pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)


def _flow(name: str, has_text_length: bool = True) -> Family:
    return Family(name, "transformer", has_text_length=has_text_length, own_call=True)


_POOLED = {"prompt_embeds": 0, "pooled_prompt_embeds": 2}
FAMILIES: dict[str, Family] = {
    "FluxPipeline": Family(
        "FLUX",
        "transformer",
        {"prompt_embeds": 0, "pooled_prompt_embeds": 1},
        single_encode=True,
        packed=True,
    ),
    "StableDiffusion3Pipeline": Family(
        "SD3",
        "transformer",
        _POOLED,
    ),
    "StableDiffusionPipeline": Family(
        "SD1.x",
        "unet",
        {"prompt_embeds": 0},
        half="float16",
        has_text_length=False,
    ),
    "StableDiffusionXLPipeline": Family(
        "SDXL",
        "unet",
        _POOLED,
        half="float16",
        has_text_length=False,
    ),
    "PixArtSigmaPipeline": Family(
        "PixArt-Sigma",
        "transformer",
        {"prompt_embeds": 0, "prompt_attention_mask": 1},
    ),
    "ChromaPipeline": _flow("Chroma"),
    "Flux2Pipeline": _flow("FLUX.2"),
    "Flux2KleinPipeline": _flow("FLUX.2"),
    "Krea2Pipeline": _flow("Krea 2"),
    "Lumina2Pipeline": _flow("Lumina 2"),
    "QwenImagePipeline": _flow("Qwen-Image"),
    "QwenImage21Pipeline": _flow("Qwen-Image-2.1", has_text_length=False),
    "SanaPipeline": _flow("SANA"),
    "ZImagePipeline": _flow("Z-Image"),
}
# Other classes whose half precision is not bfloat16: their UNets were trained in float16.
_FLOAT16 = frozenset({"AmusedPipeline", "KolorsPipeline", "LatentConsistencyModelPipeline"})


def half_precision(class_name: str) -> str:
    """The half precision that a pipeline class was trained in, or is known to be stable in."""
    if class_name in FAMILIES:
        return FAMILIES[class_name].half
    return "float16" if class_name in _FLOAT16 else "bfloat16"


def check_drawable(class_name: str) -> None:
    """Raises Unsupported for a class of diffusers that draws no pictures from words alone."""
    if class_name in FAMILIES:
        return
    import diffusers

    found = getattr(diffusers, class_name, None)
    if found is None:
        raise Unsupported(
            f"diffusers {diffusers.__version__} has no pipeline {class_name}; update it, or let a ComfyUI "
            "workflow draw: --renderer comfyui:WORKFLOW.json@URL"
        )
    check_call(found)


def check_call(pipeline: type) -> None:
    """Raises Unsupported for a pipeline class whose call does not draw from words alone."""
    known = inspect.signature(pipeline.__call__).parameters
    needs = [
        name
        for name, one in known.items()
        if one.default is inspect.Parameter.empty and name not in ("self", "prompt", "args", "kwargs")
    ]
    if "prompt" not in known or "strength" in known or needs:
        raise Unsupported(
            f"{pipeline.__name__} is no text-to-image pipeline; give a checkpoint that draws from "
            "words alone, or let a ComfyUI workflow draw: --renderer comfyui:WORKFLOW.json@URL"
        )


def family_of(class_name: str) -> Family:
    """The family of a pipeline class. Raises Unsupported with the known ones."""
    if class_name in FAMILIES:
        return FAMILIES[class_name]
    raise Unsupported(
        f"no training is known for {class_name}; it is for "
        + ", ".join(f"{known} ({family.name})" for known, family in FAMILIES.items())
    )
