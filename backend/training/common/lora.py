"""The precision in which weights are trained and stored, and merging an adapter into them."""

from __future__ import annotations

from typing import Any

from .settings import LoraSettings


def training_dtype(dtype: str, gpu: bool, lora: LoraSettings | None) -> str:
    """The name of the weights' dtype: auto is bfloat16 for an adapter on a GPU, else float32."""
    return dtype if dtype != "auto" else "bfloat16" if gpu and lora else "float32"


def merged(model: Any, dtype: str = "same") -> Any:
    """The model with its adapter, if it has one, merged into the weights, in `dtype`. Changes `model`.

    They are added in float32, because half precision rounds the small changes of an adapter away, and in main
    memory, because a GPU that has room for the weights may have none for float32. "same" leaves them so.
    """
    import torch

    if hasattr(model, "merge_and_unload"):
        model = model.to("cpu", torch.float32).merge_and_unload()
    return model if dtype == "same" else model.to(getattr(torch, dtype))
