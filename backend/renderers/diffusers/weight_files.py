"""Weight files as artists have them: safetensors and GGUF. Nothing is unpickled, which could run code.

ComfyUI's scaled files (a float8 weight `w` with `w_scale` beside it) are multiplied out when they are read:
read as they are, they would give a picture of noise and no error. Its other formats (NVFP4, MXFP8, INT8) have
rounding of their own, which only ComfyUI's kernels undo; they are refused by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, CheckpointError, Unsupported, first_line
from ...core.model_files import hash_file
from ...core.parsing import parse_json

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".gguf")
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
# What stands beside a quantised weight `layer.weight`, in ComfyUI's old and new names.
_SCALES = (".scale_weight", ".weight_scale")
_UNREAD = (".scale_input", ".input_scale", ".comfy_quant")  # for float8 arithmetic; weights do not need them


@dataclass(frozen=True)
class Header:
    """What a file holds, without its contents: {key: shape}, and the metadata of a safetensors file."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def is_weight_file(name: str) -> bool:
    """Whether a name is that of a single file of weights, of any kind."""
    return name.lower().endswith((*SUFFIXES, *PICKLES))


def check_suffix(path: Path) -> None:
    """Raises BadInput for a pickled file and any other that is not read."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise BadInput(
            f"{path} is a pickle, which can run code as it is opened; only .safetensors and .gguf are read: "
            "take that version, or convert it where you trust it"
        )
    if suffix not in SUFFIXES:
        raise BadInput(f"{path} is no weight file: expected .safetensors or .gguf")


def read_header(path: Path) -> Header:
    """Raises BadInput for a file that is not there or not read, CheckpointError for a damaged one."""
    check_suffix(path)
    if not path.is_file():
        raise BadInput(f"there is no file {path}; check its name")
    return _header(path.resolve(), path.stat().st_mtime_ns)


@lru_cache(maxsize=512)  # a folder of models is searched for several parts
def _header(path: Path, changed: int) -> Header:
    if path.suffix.lower() == ".gguf":
        reader = _gguf_reader(path)
        # GGUF gives sizes from the innermost dimension out.
        shapes = {
            tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors
        }
        return Header(path, shapes, {})
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
            return Header(path, shapes, file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {first_line(error)}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, scaled ones multiplied out to bfloat16; GGUF's stay quantised (GGUFParameter).

    Raises what `read_header` does, and Unsupported for a quantisation that cannot be undone here.
    """
    header = read_header(path)
    if path.suffix.lower() == ".gguf":
        return _read_gguf(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_quantization(header)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {first_line(error)}") from error
    return _unscaled(path, tensors)


def _check_quantization(header: Header) -> None:
    """Raises Unsupported for a format of ComfyUI's whose weights are more than number times scale."""
    try:
        layers = parse_json(header.metadata.get("_quantization_metadata", "{}")).get("layers", {})
        formats = {str(layer.get("format")) for layer in layers.values()}
    except (ValueError, AttributeError):
        raise CheckpointError(f"{header.path}: its _quantization_metadata is damaged; copy it anew") from None
    for key in header.shapes:
        if key.endswith(".comfy_quant"):
            formats.add(_format_of(header.path, key))
    foreign = sorted(formats - set(FLOAT8))
    if foreign:
        raise Unsupported(
            f"{header.path} is quantised as {', '.join(foreign)}, which only ComfyUI reads; take its bf16, "
            "fp8 or GGUF version, or draw through ComfyUI with --renderer comfyui:WORKFLOW.json@URL"
        )
    if any(key.endswith((".weight_scale_2", ".absmax", ".qweight")) for key in header.shapes):
        raise Unsupported(
            f"{header.path} is quantised in a way that is not known here; take its bf16, fp8 or GGUF "
            "version, or the diffusers folder with its quantization_config"
        )


@lru_cache(maxsize=4096)
def _format_of(path: Path, key: str) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        try:
            return str(parse_json(file.get_tensor(key).numpy().tobytes())["format"])
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(f"{path}: {key} is damaged; copy the file anew") from None


def _unscaled(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    import torch

    for key in [key for key in tensors if key.endswith(_SCALES)]:
        scale = tensors.pop(key)
        layer = key.rpartition(".")[0]
        weight = tensors.get(f"{layer}.weight")
        if weight is None or scale.numel() not in (1, len(weight)):
            raise CheckpointError(f"{path} is damaged: {key} fits no weight; copy it anew")
        scale = scale.float().reshape(-1, *[1] * (weight.ndim - 1)) if scale.numel() > 1 else scale.float()
        tensors[f"{layer}.weight"] = (weight.float() * scale).to(torch.bfloat16)
    for key in list(tensors):
        if key.endswith(_UNREAD) or key.rpartition(".")[2] == "scaled_fp8":
            del tensors[key]
    return tensors


def _gguf_reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise Unsupported(
            f"{path.name} needs the package gguf; install it (pip install gguf) and try again"
        ) from None
    try:
        return GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as GGUF: {first_line(error)}") from error


def _read_gguf(path: Path) -> dict[str, Tensor]:
    from diffusers.models.model_loading_utils import load_gguf_checkpoint
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    plain = {"F32", "F16", *(kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES)}
    kinds = {tensor.tensor_type.name for tensor in _gguf_reader(path).tensors}
    if kinds - plain:
        raise Unsupported(
            f"{path} is quantised as {', '.join(sorted(kinds - plain))}, which diffusers does not read; take "
            f"one of {', '.join(sorted(plain))}"
        )
    return load_gguf_checkpoint(path)


def fingerprint_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the contents of files, sampled above 64 MiB as `folder_fingerprint` does; not their names,
    so that a file that was moved is known again."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{size}\n".encode())
        hash_file(digest, path, size)
    return digest.hexdigest()
