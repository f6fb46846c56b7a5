"""A denoiser's LoRA as one safetensors file, in the layout that ComfyUI's stock loader and diffusers read.

| family | keys of the module `a.b.0` | read by |
|---|---|---|
| FLUX, SD3 | `transformer.a.b.0.lora_{A,B}.weight` | ComfyUI's loader, diffusers' `load_lora_weights` |
| SD1.x, SDXL | `lora_unet_a_b_0.{lora_down.weight,lora_up.weight,alpha}` | the same |
| PixArt-Sigma | `base_model.model.a.b.0.lora_{A,B}.weight` | ComfyUI's loader, peft; none of diffusers' |

(ComfyUI does not know diffusers' own layout for UNets, `unet.a.b.0.lora_A.weight`.) The adapter's scale
alpha / r is multiplied into B, so that readers that ignore alpha, and those that divide by the rank, get the
same weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import CheckpointError, Unsupported, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .families import Family

Adapter = Mapping[str, tuple["Tensor", "Tensor"]]  # module's name -> (A (r, in), B (out, r))
# Modules of a denoiser that an adapter goes to: linear layers that all readers know by name.
_BLOCK = r".*transformer_blocks\.\d+\."
ATTENTION = _BLOCK + r"attn[12]?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
BLOCKS = f"({ATTENTION})|({_BLOCK}" + r"(ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out))"
KOHYA, PEFT = "lora_unet_", "base_model.model."
PREFIXES = {
    "FLUX": "transformer.",
    "SD3": "transformer.",
    "PixArt-Sigma": PEFT,
    "SD1.x": KOHYA,
    "SDXL": KOHYA,
}
_ENDS = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_down\.weight|lora_up\.weight|alpha)")


def check_layout(family: Family) -> None:
    """Raises Unsupported for a family without a layout that ComfyUI and our reader know."""
    if family.name not in PREFIXES:
        raise Unsupported(
            f"no layout of a LoRA file is known for {family.name}; LoRAs are trained and read "
            f"for {', '.join(PREFIXES)}"
        )


def lora_tensors(family: Family, adapter: Adapter, scale: float) -> dict[str, Tensor]:
    """The file's tensors of an adapter that is applied as scale B A."""
    from diffusers.utils import convert_state_dict_to_kohya

    check_layout(family)
    kohya = PREFIXES[family.name] == KOHYA
    prefix = "unet." if kohya else PREFIXES[family.name]
    tensors = {}
    for module, (a, b) in adapter.items():
        tensors[f"{prefix}{module}.lora_A.weight"] = a.detach().cpu().contiguous()
        tensors[f"{prefix}{module}.lora_B.weight"] = (b.detach().cpu() * scale).contiguous()
    return convert_state_dict_to_kohya(tensors) if kohya else tensors


def save_lora(
    folder: Path,
    family: Family,
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, Any],
    dtype: str = "float32",
) -> Path:
    """Write `lora_tensors` to `folder`, with `notes` in the file's metadata; returns the file.

    For a family that only peft reads, it has peft's file name, and peft's settings beside it.
    """
    import torch
    from safetensors.torch import save_file

    stored = {
        key: value if key.endswith(".alpha") else value.to(getattr(torch, dtype))
        for key, value in tensors.items()
    }
    peft = PREFIXES[family.name] == PEFT
    path = folder / ("adapter_model.safetensors" if peft else "lora.safetensors")
    # One entry: the order of several is random, and a renderer's fingerprint is that of the file's bytes.
    save_file(stored, path, {"reprise": json.dumps(dict(notes), ensure_ascii=False)})
    if peft:
        from peft import LoraConfig

        modules = {match[1].removeprefix(PEFT) for key in stored if (match := _ENDS.fullmatch(key))}
        rank = next(len(value) for key, value in stored.items() if key.endswith("lora_A.weight"))
        LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(modules)).save_pretrained(str(folder))
    return path


def read_lora(path: Path, denoiser: nn.Module) -> Adapter:
    """The adapter of a file in one of our layouts, in float32, its scale in B.

    Raises CheckpointError for a file that is damaged, no LoRA, or made for another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {first_line(error)}") from error
    shapes = {name: tuple(weight.shape) for name, weight in denoiser.named_parameters()}
    modules = {
        prefix + (name.replace(".", "_") if prefix == KOHYA else name): name
        for name, _ in denoiser.named_modules()
        for prefix in set(PREFIXES.values())
    }
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = _ENDS.fullmatch(key)
        if match is None or match[1] not in modules:
            raise CheckpointError(
                f"{path} is no LoRA of this {type(denoiser).__name__}: it has no module for {key!r}; give "
                "one that `reprise train diffusion-dpo` made for the same model"
            )
        half = match[2].replace("lora_down", "lora_A").replace("lora_up", "lora_B")
        parts.setdefault(modules[match[1]], {})[half] = value.float()
    if not parts:
        raise CheckpointError(f"{path} is empty: expected a LoRA's weights, and it holds none; copy it anew")
    adapter = {}
    for module, part in parts.items():
        if not {"lora_A.weight", "lora_B.weight"} <= part.keys():
            raise CheckpointError(f"{path} is damaged: of {module} it has only one half; copy it anew")
        a, b, alpha = part["lora_A.weight"], part["lora_B.weight"], part.get("alpha")
        if a.ndim != 2 or b.ndim != 2 or not len(a) or (alpha is not None and alpha.numel() != 1):
            shown = ", ".join(f"{half} {tuple(value.shape)}" for half, value in sorted(part.items()))
            raise CheckpointError(
                f"{path} is no LoRA of linear layers: of {module} expected two matrices of "
                f"a rank of 1 at least, and one alpha, got {shown}"
            )
        if (len(b), a.shape[1]) != shapes.get(f"{module}.weight") or b.shape[1] != len(a):
            raise CheckpointError(f"{path} is a LoRA of another size: it does not fit {module}")
        b = b if alpha is None else b * (float(alpha) / len(a))
        if not (a.isfinite().all() and b.isfinite().all()):
            raise CheckpointError(
                f"{path} is damaged: {module} has values that are NaN, infinite or too large; "
                "copy it anew, or train it again"
            )
        adapter[module] = a, b
    return adapter


def apply_lora(path: Path, denoiser: nn.Module, strength: float = 1.0) -> None:
    """Add a LoRA file to a denoiser, for good. Raises CheckpointError.

    float32 weights are changed. Half precision would round a small change away: there B A x is computed
    beside the layer, in its dtype, as in training and in diffusers' own loader.
    """
    import torch

    with torch.no_grad():
        for module, (a, b) in read_lora(path, denoiser).items():
            layer = denoiser.get_submodule(module)
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            if weight.dtype == torch.float32:
                weight += (strength * (b @ a)).to(weight)
            else:
                _add_beside(layer, weight, a, strength * b)


def _add_beside(layer: nn.Module, weight: Tensor, a: Tensor, b: Tensor) -> None:
    """Add B A x to the output of a linear layer for x."""
    from torch import nn

    halves = [
        nn.Linear(half.shape[1], half.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
        for half in (a, b)
    ]
    for linear, half in zip(halves, (a, b)):
        linear.weight.copy_(half)
    beside = nn.Sequential(*halves).requires_grad_(False)
    # Children of the layer, so that they move between devices with it.
    name = f"lora_{len(list(layer.children()))}"
    layer.add_module(name, beside)
    layer.register_forward_hook(lambda layer, inputs, output: output + layer.get_submodule(name)(inputs[0]))
