"""A denoiser's LoRA as one safetensors file, in the layout that ComfyUI's stock loader and diffusers read.

| family | keys of the module `a.b.0` | read by |
|---|---|---|
| Chroma, FLUX, FLUX.2, Krea 2, Qwen-Image, SD3, Z-Image | `transformer.a.b.0.lora_{A,B}.weight` | (1) |
| Lumina 2, Qwen-Image-2.1, SANA | the same | diffusers' loader; not ComfyUI's |
| SD1.x, SDXL | `lora_unet_a_b_0.{lora_down.weight,lora_up.weight,alpha}` | (1) |
| PixArt-Sigma | `base_model.model.a.b.0.lora_{A,B}.weight` | ComfyUI's loader, peft; none of diffusers' |

(1) ComfyUI's loader and diffusers' `load_lora_weights`. (ComfyUI does not know that of diffusers for UNets,
`unet.a.b.0.lora_A.weight`.) The adapter's scale alpha / r is multiplied into B, so that readers that ignore
alpha, and those that divide by the rank, get the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import CheckpointError, Unsupported
from .lora_files import Pair, Target, changes, read_adapter, target_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .families import Family

Adapter = Mapping[str, tuple["Tensor", "Tensor"]]  # module's name -> (A (r, in), B (out, r))
# Modules of a denoiser that an adapter goes to: linear layers that all readers know by name.
_BLOCK = r".*transformer_blocks\.\d+\."
_REFINED = r"(layers|noise_refiner|context_refiner)\.\d+\."  # Z-Image, Lumina 2
_ATTENTION = (
    _BLOCK + r"attn[12]?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|to_gate)",
    # FLUX.2's, joined with the feed-forward part.
    r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
    _REFINED + r"(attn|attention)\.(to_[qkv]|to_out\.0)",
)
_FEED_FORWARD = (
    _BLOCK + r"((ff(_context)?|img_mlp|txt_mlp)\.net\.(0\.proj|2)|proj_mlp|proj_out)",
    _BLOCK + r"(ff(_context)?\.linear_(in|out)|ff\.(gate|up|down)|img_mlp\.(proj|out|gate_layer))",
    _REFINED + r"feed_forward\.(w|linear_)[123]",
)
ATTENTION = "|".join(_ATTENTION)
BLOCKS = "|".join(_ATTENTION + _FEED_FORWARD)
KOHYA, PEFT = "lora_unet_", "base_model.model."
TRANSFORMERS = (
    "Chroma",
    "FLUX",
    "FLUX.2",
    "Krea 2",
    "Lumina 2",
    "Qwen-Image",
    "Qwen-Image-2.1",
    "SANA",
    "SD3",
    "Z-Image",
)
PREFIXES = {
    **dict.fromkeys(TRANSFORMERS, "transformer."),
    "PixArt-Sigma": PEFT,
    "SD1.x": KOHYA,
    "SDXL": KOHYA,
}


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

        end = ".lora_A.weight"
        modules = {key.removeprefix(PEFT).removesuffix(end) for key in stored if key.endswith(end)}
        rank = next(len(value) for key, value in stored.items() if key.endswith("lora_A.weight"))
        LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(modules)).save_pretrained(str(folder))
    return path


def read_lora(path: Path, denoiser: nn.Module) -> Adapter:
    """The adapter of a file in diffusers' names, in float32, its scale in B. It may be one that no step has
    changed yet.

    Raises CheckpointError for a file that is damaged, no LoRA, or made for another model.
    """
    found = read_adapter(path, Target({"transformer": denoiser}))
    return {module: (pair.down, pair.up) for (_, module), pair in found.items()}


def apply_loras(loras: Sequence[tuple[Path, float]], pipeline: Any, denoiser: str) -> None:
    """Add LoRA files, each with its strength, to a pipeline's denoiser and text encoders, for good. Raises
    CheckpointError and Unsupported, before anything is changed."""
    target = target_of(pipeline, denoiser)
    for adapter, strength in [(_read_changes(path, target), strength) for path, strength in loras]:
        for (component, module), pair in adapter.items():
            _add(target.modules[component].get_submodule(module), pair, strength, module)


def apply_lora(path: Path, denoiser: nn.Module, strength: float = 1.0) -> None:
    """Add one LoRA file in diffusers' names to a denoiser, for good. Raises as `read_lora`."""
    for (_, module), pair in _read_changes(path, Target({"transformer": denoiser})).items():
        _add(denoiser.get_submodule(module), pair, strength, module)


def _read_changes(path: Path, target: Target) -> dict[tuple[str, str], Pair]:
    """As `read_adapter`; raises CheckpointError for an adapter that changes no picture, too."""
    found = read_adapter(path, target)
    if not changes(found):
        raise CheckpointError(f"{path} changes nothing: all its weights are zero; train it, or copy it anew")
    return found


def _add(layer: nn.Module, pair: Pair, strength: float, name: str) -> None:
    """float32 weights are changed. Half precision would round a small change away: there B A x is computed
    beside the layer, in its dtype, as in training and in diffusers' own loader. So it is beside quantised
    weights."""
    import torch

    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        if pair.dora is not None:
            if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                raise Unsupported(
                    f"a DoRA scales the rows of weights, and those of {name} are quantised; draw with "
                    "weights that are not, or merge the DoRA first"
                )
            weight += (strength * change_of(weight.float(), pair)).to(weight)
        elif weight.dtype == torch.float32 and not hasattr(weight, "quant_type"):
            weight += (strength * change_of(weight, pair)).to(weight)
        else:
            _add_beside(layer, pair.down, strength * pair.up)


def change_of(weight: Tensor, pair: Pair) -> Tensor:
    """What is added to a weight at full strength: B A, or for a DoRA (Liu et al. 2024, arXiv 2402.09353,
    equation 5) what makes its rows as long as it says."""
    change = pair.up @ pair.down.flatten(1)
    change = (change if pair.down.ndim == 2 else change.unflatten(1, tuple(pair.down.shape[1:]))).to(weight)
    if pair.dora is None:
        return change
    adapted = weight + change
    lengths = pair.dora.to(weight)
    if pair.columns:
        norm = adapted.transpose(0, 1).flatten(1).norm(dim=1)
        scale = (lengths / norm).reshape(1, -1, *[1] * (weight.ndim - 2))
    else:
        scale = (lengths / adapted.flatten(1).norm(dim=1)).reshape(-1, *[1] * (weight.ndim - 1))
    return adapted * scale - weight


def _add_beside(layer: nn.Module, a: Tensor, b: Tensor) -> None:
    """Add B A x to the output of a linear layer or a convolution for x."""
    import torch
    from torch import nn

    weight: Any = layer.weight
    # A quantised layer computes in another dtype than it stores; the bias is kept in it.
    kind = weight.dtype if weight.dtype in (torch.float16, torch.bfloat16) else None
    halves: list[nn.Module] = []
    for half, first in ((a, True), (b, False)):
        if half.ndim == 4 and first:
            assert isinstance(layer, nn.Conv2d)
            made: Any = nn.Conv2d(
                half.shape[1],
                len(half),
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                bias=False,
            )
        elif a.ndim == 4:
            half = half[:, :, None, None]
            made = nn.Conv2d(half.shape[1], len(half), 1, bias=False)
        else:
            made = nn.Linear(half.shape[1], half.shape[0], bias=False)
        made.weight.copy_(half)
        halves.append(made)
    beside = nn.Sequential(*halves).requires_grad_(False).to(weight.device, kind)
    # Children of the layer, so that they move between devices with it.
    name = f"lora_{len(list(layer.children()))}"
    layer.add_module(name, beside)

    def add(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        side: Any = layer.get_submodule(name)
        own = side[0].weight.dtype
        return output + side(inputs[0].to(own)).to(output.dtype)

    layer.register_forward_hook(add)
