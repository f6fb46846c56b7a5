"""Quantised weights: quantising a loaded pipeline, and whether stored quantised weights can be read here.

A quantised layer keeps its weights in 4 or 8 bits and multiplies them out each time it computes, so the
arithmetic stays that of the unquantised model. It is a parametrization (`torch.nn.utils.parametrize`) of the
layer as it is: LoRAs beside it, hooks that offload it and its dtype stay. torchao would do the same for 8
bits; but diffusers imports it at each start wherever it is installed, which takes two seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, CheckpointError, Unsupported

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

METHODS = ("nf4", "int8", "fp8")
# Text encoders with at least so many weights are quantised with the denoiser: T5-XXL, Qwen, Gemma, Mistral,
# and not CLIP, which is small beside any denoiser.
LARGE = 10**9
# Layers in a numbered block, where nearly all weights are. What embeds times, prompts and positions is small
# and sensitive to rounding.
_IN_BLOCK = re.compile(r"(^|\.)\d+\.")
_KEPT = re.compile(r"embed|guidance|final|lora_|lm_head")

# quant_method of a config.json -> (its module, how pip calls it)
PACKAGES = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "torchao": ("torchao", "torchao"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "gguf": ("gguf", "gguf"),
    "modelopt": ("modelopt", "nvidia-modelopt"),
    "auto-round": ("auto_round", "auto-round"),
    "sdnq": ("sdnq", "sdnq"),
}


def stored_quantization(folder: Path) -> str | None:
    """How a part of a pipeline is quantised, by its config.json; None if it is not."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the loader says what is wrong with it
    settings = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(settings, dict):
        return None
    if "quant_method" not in settings and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return "bitsandbytes"  # as its first versions wrote it
    return str(settings.get("quant_method"))


def check_stored(folder: Path) -> None:
    """Raises Unsupported for a part whose quantisation needs a package that is not here, or is unknown."""
    method = stored_quantization(folder)
    if method is None:
        return
    if method not in PACKAGES:
        raise Unsupported(
            f"{folder} is quantised by {method}, which is not known here; take the version that is not, or "
            f"one of {', '.join(PACKAGES)}"
        )
    module, package = PACKAGES[method]
    if not is_installed(module):
        raise Unsupported(
            f"{folder} is quantised by {method}, whose package is not installed: pip install {package}"
        )


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a module in a package
        return False


def unreadable(folder: Path, cause: str) -> CheckpointError | Unsupported:
    """The error for weights that a library did not load."""
    method = stored_quantization(folder)
    if method is not None:
        return Unsupported(
            f"{folder} is quantised by {method} and cannot be loaded here ({cause}); update {method}, take a "
            "machine that it runs on, or the version that is not quantised"
        )
    return CheckpointError(
        f"weights in {folder} cannot be read: truncated, tampered with, or of another model ({cause}); fetch "
        "them anew"
    )


def check_quantize(method: str) -> None:
    """Raises BadInput for an unknown method, Unsupported for one whose package is not installed."""
    if method not in METHODS:
        raise BadInput(f"quantize is one of {', '.join(METHODS)}; got {method!r}")
    if method == "nf4" and not is_installed("bitsandbytes"):
        raise Unsupported(
            "--quantize nf4 needs the package bitsandbytes; install it (pip install bitsandbytes), or take "
            "int8 or fp8, which need none"
        )


def quantize(pipeline: Any, denoisers: list[Any], method: str) -> None:
    """Quantise the linear layers in the blocks of a pipeline's denoisers, and of text encoders with at least
    `LARGE` weights. LoRAs must have been applied. Raises what `check_quantize` does, and BadInput for a
    denoiser that is quantised already."""
    import torch
    from torch.nn.utils.parametrize import register_parametrization

    from .prompts import text_encoders

    check_quantize(method)
    if any(_is_quantized(model) for model in denoisers):
        raise BadInput("the denoiser's weights are stored quantised already; leave out quantize")
    large = [model for model in text_encoders(pipeline) if _weights(model) >= LARGE]
    layers = [layer for model in denoisers for layer in _layers(model)]
    if not layers:
        raise Unsupported(
            f"{type(denoisers[0]).__name__} has no blocks of linear layers to quantise; leave out quantize"
        )
    layers += [layer for model in large if not _is_quantized(model) for layer in _layers(model)]
    stored = _stored_forms()[method]
    with torch.no_grad():
        for layer in layers:
            layer.requires_grad_(False)
            register_parametrization(layer, "weight", stored(layer.weight), unsafe=True)


def _weights(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())


def _is_quantized(model: nn.Module) -> bool:
    return getattr(model, "hf_quantizer", None) is not None or any(
        hasattr(one, "quant_type") for one in model.parameters()
    )


def _layers(model: nn.Module) -> Iterator[nn.Linear]:
    """The layers to quantise. The first weights stay as they are: libraries read a model's dtype off them."""
    from torch import nn

    first = next(model.parameters())
    for name, layer in list(model.named_modules()):
        plain = type(layer) is nn.Linear and layer.weight is not first
        if plain and _IN_BLOCK.search(name) and not _KEPT.search(name):
            yield layer  # type: ignore[misc]


def _stored_forms() -> dict[str, Any]:
    """{method: module that takes a weight (out, in) to what is stored of it (`right_inverse`) and back}."""
    import torch
    from torch import nn

    class Scaled(nn.Module):
        """8 bits and a scale for each output, so that the largest weight of a row is the largest number."""

        kind: torch.dtype
        largest: float

        def __init__(self, weight: Tensor):
            super().__init__()
            self.dtype = weight.dtype

        def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
            weight = weight.float()
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / self.largest
            weight = weight / scale
            return (weight.round() if self.kind == torch.int8 else weight).to(self.kind), scale

        def forward(self, values: Tensor, scale: Tensor) -> Tensor:
            return (values.to(scale.dtype) * scale).to(self.dtype)

    class Int8(Scaled):
        kind, largest = torch.int8, 127.0

    class Float8(Scaled):
        kind, largest = torch.float8_e4m3fn, 448.0

    class NormalFloat4(nn.Module):
        """Source: QLoRA (Dettmers et al. 2023, arXiv 2305.14314): 4 bits, and a scale for 64 weights."""

        def __init__(self, weight: Tensor):
            super().__init__()
            self.shape, self.dtype = weight.shape, weight.dtype

        def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
            from bitsandbytes import functional

            packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
            return packed, state.absmax

        def forward(self, packed: Tensor, scales: Tensor) -> Tensor:
            from bitsandbytes import functional

            state = functional.QuantState(
                absmax=scales, shape=self.shape, dtype=self.dtype, blocksize=64, quant_type="nf4"
            )
            return functional.dequantize_4bit(packed, state)

    return {"nf4": NormalFloat4, "int8": Int8, "fp8": Float8}
