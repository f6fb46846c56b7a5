"""What a Diffusion-DPO starts from: a renderer that can be trained, and an adapter to go on from."""

from __future__ import annotations

import re
from typing import Any

from ...core.errors import BadInput, Unsupported
from ...factory import source_of
from ...renderers.diffusers import lora as files
from ...renderers.diffusers.call import multiple
from ...renderers.diffusers.families import Family, family_of
from ...renderers.diffusers.loading import Loading, Source
from .config import DiffusionDpoConfig
from .denoisers import guidance_of, noising_of
from .pairs import check_size

TARGETS = {"attention": files.ATTENTION, "blocks": files.BLOCKS}


def check_possible(config: DiffusionDpoConfig, pipeline: Any, family: Family) -> None:
    """Raises now what the loop would raise for these settings once there are pictures."""
    check_text_length(config, family)
    if config.size is not None:
        check_size(config.size, multiple(pipeline))
    guidance_of(pipeline, family, config.guidance)
    noising_of(pipeline, (64, 64), config.shift)  # of any size
    start_of(config, getattr(pipeline, family.denoiser))


def check_text_length(config: DiffusionDpoConfig, family: Family) -> None:
    if config.max_sequence_length and not family.has_text_length:
        raise Unsupported(f"{family.name} has a fixed text length; leave max_sequence_length out")


def start_of(config: DiffusionDpoConfig, denoiser: Any) -> files.Adapter | None:
    """The adapter to go on from. Raises BadInput for one of another rank or on other modules."""
    if config.start is None:
        return None
    found = files.read_lora(config.start, denoiser)
    modules = {
        name for name, _ in denoiser.named_modules() if re.fullmatch(TARGETS[config.lora.targets], name)
    }
    sizes = {len(a) for a, _ in found.values()}
    if found.keys() != modules or sizes != {config.lora.r}:
        raise BadInput(
            f"{config.start} is an adapter of rank {max(sizes)} on {len(found)} modules, and lora asks "
            f"for rank {config.lora.r} on {len(modules)}; set lora.r and lora.targets as they were"
        )
    return found


def trainable(config: DiffusionDpoConfig) -> tuple[Source, int | None, Family]:
    """The weights of the renderer, not yet loaded, the length of text that an embedded one was trained with,
    and its family. Raises Unsupported for a family that no adapter is known for, and for quantised files."""
    places = Loading(base=config.base, parts=config.parts, comfyui=config.comfyui)
    source, length = source_of(config.model, places)
    family = family_of(source.pipeline_class)
    files.check_layout(family)
    if config.model.lower().endswith(".gguf"):
        raise Unsupported(
            f"{config.model} is quantised, and a LoRA is trained on whole weights; give the .safetensors "
            "file, and draw with the .gguf and --lora afterwards"
        )
    return source, length, family
