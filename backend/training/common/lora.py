"""The precision in which weights are trained and stored, and merging an adapter into them."""

from __future__ import annotations

from typing import Any

from .settings import LoraSettings


def training_dtype(asked: str, gpu: bool, lora: LoraSettings | None) -> str:
    """The name of the weights' dtype: auto is bfloat16 for an adapter on a GPU, else float32."""
    return asked if asked != "auto" else "bfloat16" if gpu and lora else "float32"


def merged(model: Any, dtype: str = "same") -> Any:
    """The model with its adapter, if it has one, merged into the weights, in `dtype`. Changes `model`.

    They are added in float32 and in main memory, and "same" leaves them so: half precision has no digits for
    the small changes of an adapter, and a GPU that holds the weights once need not hold them twice as wide.
    """
    import torch

    if hasattr(model, "merge_and_unload"):
        model = model.to("cpu", torch.float32).merge_and_unload()
    return model if dtype == "same" else model.to(getattr(torch, dtype))
