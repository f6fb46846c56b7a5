"""The pack's models under ComfyUI's memory manager, which loads them when used and frees the GPU if
needed."""

from __future__ import annotations

from typing import Any

import comfy.model_management as management
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..backend.core.interfaces import Managed


class ManagedModule(nn.Module):
    """Wraps a Hugging Face model: ComfyUI sets `device` on managed models, and theirs has no setter."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model


def manage(holder: Any) -> Any:
    """Put the model of `holder` (a rewriter, refiner or judge), if it has one, under the memory manager.

    It uses the text encoders' devices. Sets `holder.patcher` for `load_to_device`; returns `holder`.
    """
    if isinstance(holder, Managed) and holder.model is not None:
        devices = management.text_encoder_device(), management.text_encoder_offload_device()
        holder.patcher = ModelPatcher(ManagedModule(holder.model), *devices)
    return holder


def judge_dtype() -> str:
    """The dtype to load a judge in: float32 on a CPU, else as published ("auto")."""
    return "float32" if management.is_device_cpu(management.text_encoder_device()) else "auto"


def language_model_dtype() -> str:
    """The dtype to load a language model in: float32 on a CPU, else half precision."""
    device = management.text_encoder_device()
    if management.is_device_cpu(device):
        return "float32"
    return "bfloat16" if management.should_use_bf16(device) else "float16"


def load_to_device(*holders: Any) -> None:
    """Load the managed models of `holders`, objects that loader nodes made, onto their device."""
    patchers = [one.patcher for one in holders if isinstance(one, Managed) and one.patcher is not None]
    if patchers:
        # Whole models: only ComfyUI's own layer classes can load their weights one layer at a time.
        management.load_models_gpu(patchers, force_full_load=True)
