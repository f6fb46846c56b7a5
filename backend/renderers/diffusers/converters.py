"""Weights in their original names -> a model of diffusers, by diffusers' own converters."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import CheckpointError, RepriseError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def build(made: str, config: dict[str, Any], tensors: dict[str, Tensor], file: Path, dtype: Any) -> Any:
    """A model of diffusers from weights in original or diffusers' names; GGUF's stay quantised. Raises
    CheckpointError for weights that are missing, left over or of another size."""
    import diffusers
    import torch

    kind = getattr(diffusers, made)
    quantised = any(hasattr(value, "quant_type") for value in tensors.values())
    more: dict[str, Any] = {}
    if quantised:
        more["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    try:
        with torch.device("meta"):
            wanted = kind.from_config(config).state_dict()
        tensors = convert(made, tensors, config)
        _check_weights(tensors, wanted, f"{file} as {made}", quantised)
        if not quantised:
            tensors = own_memory(tensors, dtype)
        if made in ("AutoencoderKLFlux2", "AutoencoderKLQwenImage"):  # not of diffusers' list
            model = kind.from_config(config)
            model.load_state_dict(tensors)
            return model.to(dtype).eval()
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps({**config, "_class_name": made}))
            model = kind.from_single_file(
                tensors, config=folder, torch_dtype=dtype, local_files_only=True, **more
            )
    except RepriseError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{file} cannot be read as {made} ({type(error).__name__}: {first_line(error)}); it is cut "
            "short, or of a variant that needs --base FOLDER in diffusers' layout"
        ) from error
    return model.eval()


def _check_weights(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str, quantised: bool
) -> None:
    """Raises CheckpointError: diffusers leaves what is missing at random or on no device."""
    lost, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if lost:
        raise CheckpointError(f"{what} lacks {lost[0]} ({len(lost)} weights in all); copy it anew")
    if extra:
        raise CheckpointError(
            f"{what} has {extra[0]}, which that model has not ({len(extra)} weights in all); it is of a "
            "variant that is not known here: draw through ComfyUI with --renderer comfyui:WORKFLOW.json@URL"
        )
    for key, value in wanted.items():
        if not quantised and tensors[key].shape != value.shape:
            raise CheckpointError(
                f"{what}: expected {key} of {tuple(value.shape)}, got {tuple(tensors[key].shape)}; check "
                "that --base is of the same size"
            )


def convert(made: str, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a model in original names -> in diffusers' names, by diffusers' converter."""
    import torch
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_wan_vae_to_diffusers

    if made == "AutoencoderKLFlux2":
        own = {key: tensors.pop(key) for key in list(tensors) if key.startswith("bn.")}
        own.setdefault("bn.num_batches_tracked", torch.tensor(0))
        return {**convert_ldm_vae_checkpoint(tensors, config), **own}
    if made == "AutoencoderKLQwenImage":
        return convert_wan_vae_to_diffusers(tensors)
    if made == "UNet2DConditionModel":
        tensors = {f"model.diffusion_model.{key}": value for key, value in tensors.items()}
    mapping: Any = SINGLE_FILE_LOADABLE_CLASSES[made]["checkpoint_mapping_fn"]
    if made in ("FluxTransformer2DModel", "ChromaTransformer2DModel"):
        return _convert_flux(mapping, tensors, config)
    return mapping(checkpoint=tensors, config=dict(config))


def _convert_flux(mapping: Any, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """diffusers' converter splits the single blocks' first layer as for a width of 3072; here as it is."""
    import torch

    width = config["attention_head_dim"] * config["num_attention_heads"]
    if width == 3072:
        return mapping(checkpoint=tensors)
    joined = {}
    for key in [key for key in tensors if ".linear1." in key and key.startswith("single_blocks.")]:
        joined[key] = tensors[key]
        tensors[key] = torch.empty(7 * 3072, *[1] * (tensors[key].ndim - 1), device="meta")
    converted = mapping(checkpoint=tensors)
    for key, value in joined.items():
        block, half = key.split(".")[1], key.rpartition(".")[2]
        split = value.split([width, width, width, len(value) - 3 * width])
        for name, part in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), split, strict=True):
            converted[f"single_transformer_blocks.{block}.{name}.{half}"] = part
    return converted


def from_open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from types import SimpleNamespace

    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    hidden = tensors["positional_embedding"].shape[1]
    tensors = dict(tensors)
    # The converter splits the joined projection by the size of the last one, which may be another.
    projection = tensors.pop("text_projection", None)
    config = SimpleNamespace(config=SimpleNamespace(hidden_size=hidden))
    converted = convert_open_clip_checkpoint(config, tensors, prefix="")
    if projection is not None:
        converted["text_projection.weight"] = projection.T.contiguous()
    return converted


def own_memory(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """In memory of their own: a file's pages lie unaligned, for which kernels may round in another way."""
    return {key: value.clone() if value.dtype == dtype else value for key, value in tensors.items()}
