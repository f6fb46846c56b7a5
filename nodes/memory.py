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


def managed(model: nn.Module) -> ModelPatcher:
    """A patcher that keeps `model` on the text encoders' devices."""
    return ModelPatcher(
        Managed(model), management.text_encoder_device(), management.text_encoder_offload_device()
    )


def precision() -> str:
    """The dtype to load a judge in: as published, but float32 where it will compute on a CPU."""
    return "float32" if management.is_device_cpu(management.text_encoder_device()) else "auto"


def ready(holder: Any) -> None:
    """Bring what `holder` (a rewriter or judge of a loader node) needs onto its device."""
    patchers = [patcher for patcher in (getattr(holder, "patcher", None),) if patcher is not None]
    if patchers:
        management.load_models_gpu(patchers)
