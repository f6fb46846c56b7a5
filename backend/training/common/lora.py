"""Low-rank adapters, and the precision that a rewriter is trained and stored in."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt

from ...core.config import Config


class LoraSettings(Config):
    """A low-rank adapter in place of full fine-tuning; merged into the weights of `final/`."""

    r: PositiveInt = 32
    """Rank of the adapter; 16-64 are usual."""
    alpha: PositiveInt = 64
    """Its scale is alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapter."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Modules that get an adapter, by the end of their names."""

    def adapter(self) -> Any:
        """The same for peft."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM",
        )


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
