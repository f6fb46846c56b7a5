"""A pipeline of diffusers as an object: opening it with its weights, and borrowing it for one call."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, CheckpointError, Unsupported
from ...storage.cache import Cache
from .checkpoints import pipeline_fingerprint
from .devices import choose_device, choose_dtype, models_of, place
from .families import Family, family_of
from .loading import Loading, find_source
from .lora import apply_lora, check_layout

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def family_of_pipeline(pipeline: Any) -> Family:
    """The family of a loaded pipeline; its class may be a subclass of a known one. Raises Unsupported."""
    for base in type(pipeline).__mro__:
        with contextlib.suppress(Unsupported):
            return family_of(base.__name__)
    return family_of(type(pipeline).__name__)


def open_pipeline(model: Any, dtype: str, device: str, offload: str, loading: Loading) -> tuple[Any, str]:
    """(pipeline on its device, fingerprint of its weights), from a folder, a Hugging Face id, a single file,
    or a pipeline.

    Raises BadInput, CheckpointError and Unsupported.
    """
    import torch

    if isinstance(model, (str, Path)):
        source, lora = find_source(model, loading), loading.lora
        family = family_of(source.pipeline_class)
        target = choose_device(device)
        if lora is not None:
            check_layout(family)
        pipe, weights = source.load(choose_dtype(dtype, target, family.half))
        if lora is not None:
            apply_lora(Path(lora), getattr(pipe, family.denoiser))
            weights = Cache.key(weights, hashlib.sha256(Path(lora).read_bytes()).hexdigest())
        place(pipe, target, offload)
        return pipe, weights
    if loading != Loading():
        raise BadInput("a pipeline given as an object is left as it is; give its folder with the lora")
    if not hasattr(model, "components") or not callable(model):
        kind = type(model).__name__
        raise BadInput(f"a model is a folder, a Hugging Face id or a diffusers pipeline; got {kind}")
    family = family_of_pipeline(model)
    weights = pipeline_fingerprint(model)
    if device != "auto":
        place(model, choose_device(device), offload)
    target = model._execution_device
    narrow = getattr(model, family.denoiser).dtype == torch.float16 and target.type == "cpu"
    if dtype != "auto" or narrow:
        model.to(choose_dtype(dtype, target, family.half))
    return model, weights


def open_decoder(decoder: Any, pipe: Any) -> Any:
    if not isinstance(decoder, (str, Path)):
        return decoder
    from diffusers import AutoencoderTiny

    try:
        loaded = AutoencoderTiny.from_pretrained(decoder, use_safetensors=True, torch_dtype=pipe.vae.dtype)
    except Exception as error:
        cause = " ".join(str(error).split())
        raise CheckpointError(
            f"preview decoder {str(decoder)!r} cannot be loaded ({cause[:200]}); "
            "give the folder or id of an AutoencoderTiny"
        ) from error
    return loaded.eval().to(pipe._execution_device)


def unscale_latents(latents: Tensor, config: Any) -> Tensor:
    """A denoiser's latents (B, C, h, w) -> its VAE's, scaled as the pipelines do before decoding."""
    import torch

    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:  # some SDXL VAEs
        mean, std = (torch.tensor(v).to(latents).view(1, -1, 1, 1) for v in (mean, std))
        return latents * std / config.scaling_factor + mean
    latents = latents / config.scaling_factor
    shift = config.get("shift_factor")
    return latents + shift if shift else latents


@contextlib.contextmanager
def shortened_warnings(module: str):
    """Shortens the log messages of `module`: pipelines log everything that they cut off a long prompt."""

    def shorten(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if len(text) > 240:
            record.msg, record.args = text[:240] + "…", ()
        return True

    logger = logging.getLogger(module)
    logger.addFilter(shorten)
    try:
        yield
    finally:
        logger.removeFilter(shorten)


@contextlib.contextmanager
def borrowed(pipe: Any, scheduler: Any):
    """A context in which the pipeline is quiet, in eval mode, and uses `scheduler`. Restores everything."""
    bars, own = getattr(pipe, "_progress_bar_config", None), pipe.scheduler
    models: list[Any] = list(models_of(pipe).values())
    training: list[torch.nn.Module] = [
        module for model in models for module in model.modules() if module.training
    ]
    dtypes = [(model, model.dtype) for model in models if hasattr(model, "dtype")]
    free_hooks = pipe.maybe_free_model_hooks
    try:
        pipe.set_progress_bar_config(**{**(bars or {}), "disable": True})
        pipe.scheduler = scheduler
        # Freeing re-installs offload hooks, and with them forward methods, so it waits until the row mask is
        # off.
        pipe.maybe_free_model_hooks = lambda: None
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
        for model, dtype in dtypes:
            if model.dtype != dtype:  # AmusedImg2ImgPipeline leaves its VQModel upcast if it does not decode
                model.to(dtype)
        del pipe.maybe_free_model_hooks
        pipe.scheduler = own
        if bars is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = bars
        free_hooks()
