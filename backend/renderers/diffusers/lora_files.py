"""LoRA files of every common trainer, as pairs of matrices by the names of a pipeline's modules.

A file's names are matched with the modules themselves where they are diffusers' (PEFT, kohya's underscores,
ai-toolkit, OneTrainer, LyCORIS, diffusers old and new). Names of the original repositories (BFL's,
Stability's) go through the converter of the pipeline's own loader in diffusers. What neither knows is refused
by name: diffusers' loader itself passes over some layouts without an error and without an effect.

LoHa and LoKr are written as LoRAs, which is exact: a Hadamard product of two products of rank r is one of
rank r², and a Kronecker product of two matrices factors into two Kronecker products with the identity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import CheckpointError, Unsupported, first_line
from ...storage.checksums import check_file

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Pair:
    """What is added to one module's weight: scale in `up`, both in float32."""

    down: Tensor  # (r, in), or (r, in, h, w) of a convolution
    up: Tensor  # (out, r)
    dora: Tensor | None = None  # lengths of the adapted weight's rows (DoRA), (out,)
    columns: bool = False  # `dora` is that of its columns instead, (in,), as LyCORIS may have it


Adapter = dict[tuple[str, str], Pair]  # {(component of the pipeline, module): pair}

# What follows a module's name -> what it is. `default` is the name of an adapter in PEFT.
_ENDS = {
    r"(?:lora_A(?:\.default)?|lora_down|lora\.down|lora_linear_layer\.down)\.weight": "down",
    r"(?:lora_B(?:\.default)?|lora_up|lora\.up|lora_linear_layer\.up)\.weight": "up",
    r"alpha": "alpha",
    r"dora_scale|lora_magnitude_vector(?:\.default)?(?:\.weight)?": "dora",
    r"(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)": "",
}
_KEY = [(re.compile(rf"(.+)\.(?:{end})"), part) for end, part in _ENDS.items()]
_OLD_PROCESSOR = re.compile(r"(.+)\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight")
_DENOISER_DOTS = ("diffusion_model.", "model.diffusion_model.", "base_model.model.diffusion_model.")
_UNDERSCORES = ("lora_unet_", "lora_transformer_", "lycoris_")
_TEXT_UNDERSCORES = {
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_", "lora_te3_"),
    "text_encoder_3": ("lora_te3_",),
}
# Layers that diffusers' converters split for one width only (FLUX.1), or not at all (Z-Image): original name,
# block in diffusers, its modules in the order of the rows.
_REFINED = r"(layers|noise_refiner|context_refiner)[._](\d+)[._]attention[._]"
_JOINED = (
    (
        r"single_blocks[._](\d+)[._]linear1",
        r"single_transformer_blocks.\1",
        ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    ),
    (_REFINED + "qkv", r"\1.\2.attention", ("to_q", "to_k", "to_v")),
    (_REFINED + "out", r"\1.\2.attention", ("to_out.0",)),
)
# In these, diffusers' converter reads original names best with kohya's underscores.
_KOHYA = frozenset(
    "FluxPipeline Flux2Pipeline Flux2KleinPipeline ChromaPipeline QwenImagePipeline StableDiffusionPipeline "
    "StableDiffusionXLPipeline".split()
)


@dataclass
class Target:
    """The modules that a file's weights go to."""

    modules: Mapping[str, nn.Module]
    """{component: module}: the denoiser first, then text encoders."""
    pipeline: Any = None
    """The pipeline's class, whose loader converts original names; None: only diffusers' names are read."""
    config: Any = None
    """The denoiser's config, which some converters ask for."""
    names: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self):
        for place, (component, whole) in enumerate(self.modules.items()):
            for name, module in whole.named_modules():
                if not name or not hasattr(module, "weight"):
                    continue
                flat, dotted = name.replace(".", "_"), [f"{component}.{name}"]
                if place == 0:
                    dotted += [prefix + name for prefix in ("", "base_model.model.", *_DENOISER_DOTS)]
                    dotted += [prefix + flat for prefix in _UNDERSCORES]
                else:
                    # transformers no longer has the level that the files' names have.
                    for extra in ("", "text_model_"):
                        prefixes = _TEXT_UNDERSCORES.get(component, ())
                        dotted += [f"{prefix}{extra}{flat}" for prefix in prefixes]
                    dotted.append(f"{component}.text_model.{name}")
                for one in dotted:
                    self.names.setdefault(one, (component, name))

    @property
    def denoiser(self) -> str:
        return next(iter(self.modules))


def target_of(pipeline: Any, denoiser: str) -> Target:
    """The modules of a loaded pipeline that a LoRA may change."""
    text = ("text_encoder", "text_encoder_2", "text_encoder_3")
    parts = {name: part for name in (denoiser, *text) if (part := getattr(pipeline, name, None)) is not None}
    return Target(parts, type(pipeline), parts[denoiser].config)


def read_adapter(path: Path, target: Target) -> Adapter:
    """The adapter of a LoRA file. Raises CheckpointError for a file that is damaged or no LoRA of this model,
    and Unsupported for one whose layout or method is not known."""
    parts = _parts(path, _tensors(path))
    pairs = {module: _pair(path, module, part) for module, part in parts.items()}
    found: Adapter = {}
    foreign: dict[str, Pair] = {}
    for module, pair in pairs.items():
        place = target.names.get(module)
        if place is None:
            foreign[module] = pair
        else:
            found[place] = pair
    if foreign:
        found |= _converted(path, foreign, target)
    for (component, name), pair in found.items():
        _check(path, name, pair, target.modules[component].get_submodule(name))
    return found


def changes(adapter: Mapping[Any, Pair]) -> bool:
    """Whether an adapter changes any weight: the second factor of a new one is zero."""
    return any(pair.up.any() and pair.down.any() for pair in adapter.values())


def changes_something(path: Path) -> bool:
    """Whether a LoRA file changes any weight."""
    parts = _parts(path, _tensors(path))
    return changes({module: _pair(path, module, part) for module, part in parts.items()})


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .weight_files import PICKLES, check_suffix

    if path.suffix.lower() in PICKLES:
        check_suffix(path)
    check_file(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {first_line(error)}") from error
    if not tensors:
        raise CheckpointError(f"{path} is empty: expected a LoRA's weights, and it holds none; copy it anew")
    return tensors


def _parts(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{module in the file's names: {part: tensor}}"""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if old := _OLD_PROCESSOR.fullmatch(key):
            module = f"{old[1]}.to_{old[2]}" + (".0" if old[2] == "out" else "")
            parts.setdefault(module, {})[old[3]] = value
            continue
        for pattern, part in _KEY:
            if match := pattern.fullmatch(key):
                parts.setdefault(match[1], {})[part or match[2]] = value
                break
        else:
            if not value.any():
                continue  # kohya writes zeros where nothing was trained
            raise Unsupported(
                f"{path} has {key!r}, which is no part of a LoRA, LoHa, LoKr or DoRA that is known; leaving "
                "it out would draw something else: convert the file with its trainer"
            )
    return parts


def _pair(path: Path, module: str, part: dict[str, Tensor]) -> Pair:
    import torch

    given = dict(part)
    part = {name: value.float() for name, value in part.items()}
    alpha, dora = part.pop("alpha", None), part.pop("dora", None)
    if alpha is not None and alpha.numel() != 1:
        raise CheckpointError(f"{path} is no LoRA: of {module} expected one alpha, {_shown(given)}")
    try:
        if any(name.startswith("hada_") for name in part):
            down, up, rank = _hadamard(path, module, part)
        elif any(name.startswith("lokr_") for name in part):
            down, up, rank = _kronecker(path, module, part)
        else:
            if not {"down", "up"} <= part.keys():
                raise CheckpointError(f"{path} is damaged: of {module} it has only one half; copy it anew")
            down, up = part["down"], part["up"]
            if up.ndim == 4 and up.shape[2:] == (1, 1):
                up = up[:, :, 0, 0]
            rank = len(down) if down.ndim else 0
            if down.ndim not in (2, 4) or up.ndim != 2 or not rank or up.shape[1] != rank:
                raise CheckpointError(
                    f"{path} is no LoRA: of {module} expected two matrices of a rank of 1 at least, "
                    f"{_shown(given)}"
                )
    except (RuntimeError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged: of {module} {_shown(given)}; copy it anew") from error
    if alpha is not None and rank is not None:
        up = up * (float(alpha) / rank)
    if not all(torch.isfinite(value).all() for value in (down, up, *([] if dora is None else [dora]))):
        raise CheckpointError(
            f"{path} is damaged: {module} has values that are NaN, infinite or too large; copy it anew, or "
            "train it again"
        )
    if dora is None:
        return Pair(down, up)
    return Pair(down, up, dora.flatten(), columns=dora.ndim > 1 and len(dora) == 1 != len(up))


def _shown(part: Mapping[str, Tensor]) -> str:
    return "got " + ", ".join(f"{name} {tuple(value.shape)}" for name, value in sorted(part.items()))


def _hadamard(path: Path, module: str, part: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """LoHa: (w1_a w1_b) * (w2_a w2_b), element by element."""
    import torch

    if "hada_t1" in part or part["hada_w1_b"].ndim != 2:
        raise Unsupported(f"{path}: of {module} it has a Tucker decomposition, which is not read")
    up = torch.einsum("or,os->ors", part["hada_w1_a"], part["hada_w2_a"]).flatten(1)
    down = torch.einsum("ri,si->rsi", part["hada_w1_b"], part["hada_w2_b"]).flatten(0, 1)
    return down, up, len(part["hada_w1_b"])


def _kronecker(path: Path, module: str, part: dict[str, Tensor]) -> tuple[Tensor, Tensor, int | None]:
    """LoKr: kron(w1, w2), each whole or a product; alpha counts only where one is a product."""
    import torch

    if "lokr_t2" in part:
        raise Unsupported(f"{path}: of {module} it has a Tucker decomposition, which is not read")
    rank = None
    for name in ("lokr_w1", "lokr_w2"):
        if name not in part:
            rank = len(part[f"{name}_b"])
            part[name] = part[f"{name}_a"] @ part[f"{name}_b"].flatten(1)
    first, second = part["lokr_w1"], part["lokr_w2"]
    shape = second.shape[2:]
    second = second.flatten(1)
    # kron(a, b) = kron(a, 1) kron(1, b), the ones of b's height and of a's width.
    if "lokr_w2_a" in part:
        up = torch.kron(first, part["lokr_w2_a"])
        down = torch.kron(torch.eye(first.shape[1]), part["lokr_w2_b"].flatten(1))
    else:
        up = torch.kron(first, torch.eye(len(second)))
        down = torch.kron(torch.eye(first.shape[1]), second)
    if len(shape):
        down = down.unflatten(1, (-1, *shape))
    return down, up, rank


def _converted(path: Path, foreign: Mapping[str, Pair], target: Target) -> Adapter:
    """Pairs in original names, by the converter of the pipeline's loader."""
    first = next(iter(foreign))
    kind = type(target.modules[target.denoiser]).__name__
    refusal = CheckpointError(
        f"{path} is no LoRA of this {kind}: it has no module for {first!r} ({len(foreign)} such modules); "
        "give one that was trained on the same family"
    )
    read = getattr(target.pipeline, "lora_state_dict", None)
    if read is None:
        raise refusal
    found = _convert(path, foreign, target, read, refusal)
    lengths = {name: pair.dora for name, pair in foreign.items() if pair.dora is not None}
    if any(foreign[name].columns for name in lengths):
        raise Unsupported(
            f"{path} is a DoRA by columns on joined layers ({first!r}), which is not read; train it with "
            "wd_on_output, as is usual now"
        )
    if lengths:
        # They are split as the rows are: as LoRAs of rank 1 they take the same way.
        import torch

        columns = {
            name: Pair(torch.ones(1, *foreign[name].down.shape[1:]), length[:, None])
            for name, length in lengths.items()
        }
        for place, pair in _convert(path, columns, target, read, refusal).items():
            found[place].dora = pair.up[:, 0]
    return found


def _convert(
    path: Path, pairs: Mapping[str, Pair], target: Target, read: Any, refusal: CheckpointError
) -> Adapter:
    import torch

    found: Adapter = {}
    given: dict[str, Any] = {}
    underscores = any(base.__name__ in _KOHYA for base in target.pipeline.__mro__)
    for name, pair in pairs.items():
        for prefix in (*_DENOISER_DOTS, "base_model.model.", "transformer.", "unet.", *_UNDERSCORES):
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                break
        split = _split(name, pair, target)
        if split is not None:
            found |= split
            continue
        if underscores:
            if not name.startswith("lora_te"):
                name = "lora_unet_" + name.replace(".", "_")
            given |= {f"{name}.lora_down.weight": pair.down, f"{name}.lora_up.weight": pair.up}
            given[f"{name}.alpha"] = torch.tensor(float(len(pair.down)))
        else:
            flat = "lora_unet_" if "." not in name else "diffusion_model."
            ends = ("lora_down", "lora_up") if "." not in name else ("lora_A", "lora_B")
            given |= {f"{flat}{name}.{end}.weight": one for end, one in zip(ends, (pair.down, pair.up))}
    rows = sum(len(pair.up) for pair in pairs.values())
    try:
        more = {"unet_config": target.config} if target.denoiser == "unet" else {}
        made: Any = read(given, **more) if given else {}
    except Exception as error:
        raise refusal from error
    made = made[0] if isinstance(made, tuple) else made
    for module, part in _parts(path, made).items():
        place = target.names.get(module)
        if place is None or not {"down", "up"} <= part.keys():
            raise refusal
        up = part["up"]
        found[place] = Pair(part["down"], up[:, :, 0, 0] if up.ndim == 4 else up)
    # A converter may leave out what it does not know, and only log it: every row has to be there.
    if not found or sum(len(pair.up) for pair in found.values()) != rows:
        raise refusal
    return found


def _split(name: str, pair: Pair, target: Target) -> Adapter | None:
    """The parts of a layer that `_JOINED` knows, by the rows of each; None for another layer."""
    known = [one for one in _JOINED if re.fullmatch(one[0], name)]
    if not known:
        return None
    pattern, block, parts = known[0]
    made = re.sub(pattern, block, name)
    names = [f"{made}.{part}" for part in parts]
    if not all(name in target.names for name in names):
        joined = f"{made}.attn.to_qkv_mlp_proj"  # FLUX.2 keeps it joined
        return {target.names[joined]: pair} if joined in target.names else None
    modules = [target.modules[target.denoiser].get_submodule(name) for name in names]
    sizes: Any = [getattr(module, "out_features", 0) for module in modules]
    if sum(sizes) != len(pair.up):
        return {}
    return {
        target.names[name]: Pair(pair.down, up) for name, up in zip(names, pair.up.split(sizes), strict=True)
    }


def _check(path: Path, name: str, pair: Pair, module: nn.Module) -> None:
    """Raises CheckpointError for a pair that does not fit its module."""
    from torch import nn

    if isinstance(module, nn.Conv2d):
        size: Any = module.out_channels, module.in_channels // module.groups, *module.kernel_size
        if pair.down.ndim == 2 and pair.down[0].numel() == math.prod(size[1:]):
            pair.down = pair.down.unflatten(1, size[1:])
        made = (len(pair.up), *pair.down.shape[1:])
    elif hasattr(module, "in_features"):
        size = module.out_features, module.in_features
        if pair.down.ndim == 4 and pair.down.shape[2:] == (1, 1):
            pair.down = pair.down[:, :, 0, 0]
        made = (len(pair.up), *pair.down.shape[1:])
    else:
        raise Unsupported(f"{path}: {name} is a {type(module).__name__}, which no LoRA is added to")
    wanted = size[1 if pair.columns else 0]
    if made != tuple(size) or (pair.dora is not None and len(pair.dora) != wanted):
        raise CheckpointError(
            f"{path} is a LoRA of another size: it does not fit {name}, a weight of {tuple(size)}, got {made}"
        )
