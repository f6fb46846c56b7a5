"""Models of ours under ComfyUI's memory manager: loaded when used, off the GPU when it wants the room."""

from __future__ import annotations

from typing import Any

import comfy.model_management as management
from comfy.model_patcher import ModelPatcher
from torch import nn


class Managed(nn.Module):
    """Around a Hugging Face model, whose `device` has no setter: comfy writes one on what it manages."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model


def managed(holder: Any) -> Any:
    """`holder` (a rewriter, refiner or judge) with its `model` under the manager, on the text encoders'
    devices, through a `patcher` that `ready` finds."""
    devices = management.text_encoder_device(), management.text_encoder_offload_device()
    holder.patcher = ModelPatcher(Managed(holder.model), *devices)
    return holder


def precision() -> str:
    """The dtype to load a judge in: as published, but float32 where it will compute on a CPU."""
    return "float32" if management.is_device_cpu(management.text_encoder_device()) else "auto"


def ready(holder: Any) -> None:
    """Bring the model of what a loader node made onto its device, where it has one under the manager."""
    patcher = getattr(holder, "patcher", None)
    if patcher is not None:
        management.load_models_gpu([patcher])
