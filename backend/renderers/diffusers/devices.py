"""Chooses a pipeline's device, dtype and offloading.

The choices are functions of plain numbers, so they can be tested without the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, Unsupported

if TYPE_CHECKING:
    import torch

OFFLOADS = ("auto", "none", "model", "sequential")
DTYPES = ("auto", "float32", "bfloat16", "float16")
# Bytes left free beside the weights, for a step's activations and for the host (ComfyUI, a desktop).
_RESERVE = 2 * 2**30


def choose_device(device: str | torch.device) -> torch.device:
    """The torch device; 'auto' takes CUDA, else MPS, else the CPU. Raises BadInput."""
    import torch

    if isinstance(device, str) and device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise BadInput(f"device is 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'; got {device!r}") from None
    present = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if not present.get(chosen.type, lambda: True)():
        raise BadInput(f"device {chosen} is not present here; use 'auto' or 'cpu'")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device, half: str = "bfloat16") -> torch.dtype:
    """The dtype; 'auto' is float32 on a CPU, else the family's half precision (float16 if bfloat16 is
    missing).

    Raises BadInput for another name, Unsupported for float16 on a CPU.
    """
    import torch

    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise BadInput(f"dtype is one of {', '.join(DTYPES)}; got {name!r}")
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        if device.type == "cuda" and half == "bfloat16" and not torch.cuda.is_bf16_supported():
            half = "float16"
        return getattr(torch, half)
    if name == "float16" and device.type == "cpu":
        # 0.3 GFLOP/s against 52 in float32 (measured).
        raise Unsupported("float16 on a CPU is a hundred times slower than float32; use 'auto' or 'bfloat16'")
    return getattr(torch, name)


def choose_training_dtype(dtype: str, device: torch.device) -> str:
    """The name of the dtype to train a renderer in; 'auto' is bfloat16 on a GPU that has it, else float32."""
    import torch

    if dtype != "auto":
        return dtype
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def choose_offload(offload: str, device: torch.device, total: int, largest: int, free: int) -> str:
    """'none', 'model' or 'sequential', for weights of `total` bytes and a `largest` model of so many bytes.

    'auto' keeps everything on the device if it fits into `free` bytes, else moves one model at a time there,
    else one layer at a time. Raises BadInput, and Unsupported for offloading without CUDA.
    """
    if offload not in OFFLOADS:
        raise BadInput(f"offload is one of {', '.join(OFFLOADS)}; got {offload!r}")
    if device.type != "cuda":
        if offload in ("model", "sequential"):
            raise Unsupported(f"offload={offload!r} needs a CUDA device, this is {device.type}; use 'auto'")
        return "none"  # the device's memory is the main memory
    if offload != "auto":
        return offload
    if total + _RESERVE <= free:
        return "none"
    return "model" if largest + _RESERVE <= free else "sequential"


def place(pipeline: Any, device: torch.device, offload: str) -> str:
    """Moves a newly loaded pipeline to its device; returns the chosen offload mode."""
    import torch

    sizes = [weight_bytes(model) for model in models_of(pipeline).values()] or [0]
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    mode = choose_offload(offload, device, sum(sizes), max(sizes), free)
    if mode == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif mode == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
    return mode


def models_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """{name: module} of the pipeline's components that have weights."""
    import torch

    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def weight_bytes(model: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
