"""Loads published weights into transformers' classes: without running code, with every key accounted for."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, CheckpointError, first_line
from ...core.model_files import quiet_loading
from ...core.parsing import parse_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MAX_NAMED_KEYS = 3  # keys of each kind that an error names

# The published key of a parameter, and a function from the published tensor to the parameter.
Source = tuple[str, Callable[["Tensor"], "Tensor"]]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pt, .pth or .bin file with a dict of tensors, directly or
    under "state_dict".

    They are memory-mapped if the format allows it. Raises CheckpointError.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = _unpickled(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than weights, or is no checkpoint; it was not loaded: "
            f"reading it could run code ({first_line(error)})"
        ) from error
    except Exception as error:  # torch and safetensors raise many types for a damaged file
        raise CheckpointError(f"{path} is damaged or no checkpoint: {first_line(error)}") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    tensors = dict(found) if isinstance(found, Mapping) else {}
    if not tensors or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds no dictionary of tensors; take the published file as it is")
    return tensors


def read_settings(path: Path, model_type: str) -> dict[str, Any]:
    """A config.json in Hugging Face's layout. Raises CheckpointError for another model type."""
    try:
        settings = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    found = settings.get("model_type") if isinstance(settings, dict) else None
    if found != model_type:
        raise CheckpointError(f"{path} describes a model of type {found!r}, expected {model_type!r}")
    return settings


def _unpickled(path: Path):
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6


def fill(
    build: Callable[[], nn.Module],
    tensors: Mapping[str, Tensor],
    source: Callable[[str], Source],
    unused: Callable[[str], bool],
    *,
    description: str,
    path: Path,
    device: torch.device,
    dtype: torch.dtype | None,
) -> nn.Module:
    """The module that `build` makes, with the weights in `tensors`, in eval mode and without gradients.

    It is built on the meta device and gets each tensor on `device` in `dtype` (None: the dtype of the
    largest tensor). `description` names the expected model in errors. Raises CheckpointError for a missing
    key of `source`, a left-over key that is not `unused`, or another shape.
    """
    import torch

    with quiet_loading(), torch.device("meta"):
        module = build()
    sources = {name: source(name) for name in module.state_dict()}
    needed = {key for key, _ in sources.values()}
    missing = sorted(needed - tensors.keys())
    left_over = sorted(key for key in tensors.keys() - needed if not unused(key))
    refuse_keys(path, description, missing=missing, unexpected=left_over)
    if dtype is None:
        dtype = max((tensors[key] for key in needed), key=lambda tensor: tensor.numel()).dtype
    filled = {}
    for name, empty in module.state_dict().items():
        key, pick = sources[name]
        try:
            tensor = pick(tensors[key])
        except (RuntimeError, IndexError) as error:  # such as a scalar instead of a matrix
            raise CheckpointError(
                f"{path} is not {description}: {key} is {tuple(tensors[key].shape)}"
            ) from error
        if tensor.shape != empty.shape:
            raise CheckpointError(
                f"{path} is not {description}: {key} gives {tuple(tensor.shape)}, "
                f"expected {tuple(empty.shape)}"
            )
        filled[name] = tensor.to(device=device, dtype=dtype).contiguous()
    module.load_state_dict(filled, assign=True)
    _number_positions(module, device)
    return module.eval().requires_grad_(False)


def refuse_keys(path: Path, description: str, **keys: Sequence[str]) -> None:
    """Raises CheckpointError if any of the lists of keys (missing=…, unexpected=…) is not empty."""
    faults = [
        f"{len(of)} keys are {kind} ({', '.join(of[:MAX_NAMED_KEYS])}{', …' * (len(of) > MAX_NAMED_KEYS)})"
        for kind, of in keys.items()
        if of
    ]
    if faults:
        raise CheckpointError(f"{path} is not {description}: {' and '.join(faults)}")


def _number_positions(module: nn.Module, device: torch.device) -> None:
    """Fills the buffers `position_ids`, which are not in the file and were built on the meta device."""
    import torch

    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, _, last = name.rpartition(".")
            assert last == "position_ids", name
            numbers = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
            module.get_submodule(owner).register_buffer(last, numbers, persistent=False)


def placement(device: str | None, dtype: str | None) -> tuple[torch.device, torch.dtype | None]:
    """(device, dtype) to compute with; dtype None means the file's own.

    The default is the GPU if there is one, in the published dtype; on a CPU float32, because half precision
    is slow there. `dtype` is the name of a torch dtype, or "auto" for the published one. Raises BadInput.
    """
    import torch

    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        return where, torch.float32 if where.type == "cpu" else None
    if dtype == "auto":
        return where, None
    kind = getattr(torch, dtype, None)
    if kind not in (torch.float32, torch.float16, torch.bfloat16):
        raise BadInput(f"unknown dtype {dtype!r}; expected float32, float16, bfloat16 or auto")
    return where, kind
