"""Models of ours under ComfyUI's memory manager: loaded when used, off the GPU when it wants the room."""

from __future__ import annotations

from typing import Any

import comfy.model_management as management
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..backend.core.interfaces import Managed


class ManagedModule(nn.Module):
    """Around a Hugging Face model, whose `device` has no setter: comfy writes one on what it manages."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model


def manage(holder: Any) -> Any:
    """`holder` (a rewriter, refiner or judge) with its `model`, where it has one, under the manager, on the
    text encoders' devices, through a `patcher` that `load_to_device` finds."""
    if isinstance(holder, Managed) and holder.model is not None:
        devices = management.text_encoder_device(), management.text_encoder_offload_device()
        holder.patcher = ModelPatcher(ManagedModule(holder.model), *devices)
    return holder


def judge_dtype() -> str:
    """The dtype to load a judge in: as published, but float32 where it will compute on a CPU."""
    return "float32" if management.is_device_cpu(management.text_encoder_device()) else "auto"


def language_model_dtype() -> str:
    """The dtype to load a language model in: float32 where it will compute on a CPU, else half."""
    device = management.text_encoder_device()
    if management.is_device_cpu(device):
        return "float32"
    return "bfloat16" if management.should_use_bf16(device) else "float16"


def load_to_device(*holders: Any) -> None:
    """Bring the models of what loader nodes made onto their device, where they have one under the manager."""
    patchers = [one.patcher for one in holders if isinstance(one, Managed) and one.patcher is not None]
    if patchers:
        # In part would not do: only ComfyUI's own classes bring a layer's weights when it is its turn.
        management.load_models_gpu(patchers, force_full_load=True)
