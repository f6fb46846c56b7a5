"""A pipeline of diffusers as an object: opening it with its weights, and borrowing it for one call."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, CheckpointError, Unsupported
from ...storage.cache import Cache
from . import call
from .checkpoints import pipeline_fingerprint
from .devices import choose_device, choose_dtype, models_of, place
from .families import Family, check_call, family_of, half_precision
from .loading import Loading, find_source
from .lora import apply_loras
from .quantization import check_quantize, quantize

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
        if loading.quantize is not None:
            check_quantize(loading.quantize)
        source = find_source(model, loading)
        name, target = source.pipeline_class, choose_device(device)
        pipe, weights = source.load(choose_dtype(dtype, target, half_precision(name)))
        if loading.loras:
            main = call.denoisers(pipe)[0]
            apply_loras(
                loading.loras, pipe, next(name for name, part in models_of(pipe).items() if part is main)
            )
            files = [hashlib.sha256(path.read_bytes()).hexdigest() for path, _ in loading.loras]
            strengths = [strength for _, strength in loading.loras]
            # One LoRA at full strength is named as it always was.
            weights = Cache.key(weights, *files, *([] if strengths == [1.0] else strengths))
        if loading.quantize is not None:
            quantize(pipe, call.denoisers(pipe), loading.quantize)
            weights = Cache.key(weights, "quantize", loading.quantize)
        place(pipe, target, offload)
        return pipe, weights
    if loading != Loading():
        raise BadInput("a pipeline given as an object is left as it is; give its folder with the lora")
    if not hasattr(model, "components") or not callable(model):
        kind = type(model).__name__
        raise BadInput(f"a model is a folder, a Hugging Face id or a diffusers pipeline; got {kind}")
    if not call.is_modular(model):
        check_call(type(model))
    weights = pipeline_fingerprint(model)
    if device != "auto":
        place(model, choose_device(device), offload)
    target = model._execution_device
    narrow = call.denoisers(model)[0].dtype == torch.float16 and target.type == "cpu"
    if dtype != "auto" or narrow:
        model.to(choose_dtype(dtype, target, half_precision(type(model).__name__)))
    return model, weights


def new_scheduler(name: str, own: Any) -> Any:
    """The scheduler of this class of diffusers, with the config of the pipeline's own. Raises BadInput."""
    import diffusers

    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        like = ", ".join(sorted(one.__name__ for one in own.compatibles)) or type(own).__name__
        raise BadInput(f"diffusers has no scheduler {name!r}; for this pipeline there are {like}")
    made: Any = found
    return made.from_config(own.config)


def tile(pipe: Any) -> None:
    """Have the pipeline's VAE decode in tiles. Raises Unsupported where it cannot."""
    vae = call.decoder(pipe)
    if not hasattr(vae, "enable_tiling"):
        raise Unsupported(f"the decoder of {type(pipe).__name__} cannot work in tiles; drop vae_tiling")
    vae.enable_tiling()


def open_decoder(decoder: Any, pipe: Any) -> Any:
    if not isinstance(decoder, (str, Path)):
        return decoder
    from diffusers import AutoencoderTiny

    try:
        loaded = AutoencoderTiny.from_pretrained(
            decoder, use_safetensors=True, torch_dtype=call.decoder(pipe).dtype
        )
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
def _filtered(module: str, keep: Callable[[logging.LogRecord], bool]):
    """A context in which the log messages of `module` pass through `keep`."""
    logger = logging.getLogger(module)
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def silenced(module: str):
    """Drops the log messages of `module`: modular pipelines log an error that is expected here."""
    return _filtered(module, lambda record: False)


def shortened_warnings(module: str):
    """Shortens the log messages of `module`: pipelines log everything that they cut off a long prompt."""

    def shorten(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if len(text) > 240:
            record.msg, record.args = text[:240] + "…", ()
        return True

    return _filtered(module, shorten)


def quiet_copy(pipe: Any) -> Any:
    """A pipeline with the same parts, whose attributes may be set without changing `pipe`. It shows no
    progress."""
    twin = copy.copy(pipe)
    if call.is_modular(pipe):
        twin._blocks = call.blocks(pipe)
    twin.set_progress_bar_config(**{**(getattr(pipe, "_progress_bar_config", None) or {}), "disable": True})
    # Freeing re-installs offload hooks, and with them forward methods, so it waits until the row mask is off.
    twin.maybe_free_model_hooks = lambda: None
    for name, value in vars(pipe).items():
        if hasattr(value, "components") and hasattr(value, "scheduler"):  # a stage of a combined pipeline
            setattr(twin, name, quiet_copy(value))
    return twin


def set_scheduler(twin: Any, scheduler: Any) -> None:
    """Give a `quiet_copy` another scheduler, in each stage that has the same one."""
    own = twin.scheduler
    twin.scheduler = scheduler
    for value in vars(twin).values():
        if hasattr(value, "components") and getattr(value, "scheduler", None) is own:
            value.scheduler = scheduler


@contextlib.contextmanager
def borrowed(pipe: Any):
    """A context in which the pipeline's models are in eval mode. Restores that and their dtypes, and frees
    what is offloaded."""
    models: list[Any] = list(models_of(pipe).values())
    training: list[torch.nn.Module] = [
        module for model in models for module in model.modules() if module.training
    ]
    dtypes = [(model, model.dtype) for model in models if hasattr(model, "dtype")]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
        for model, dtype in dtypes:
            if model.dtype != dtype:  # AmusedImg2ImgPipeline leaves its VQModel upcast if it does not decode
                model.to(dtype)
        if hasattr(pipe, "maybe_free_model_hooks"):
            pipe.maybe_free_model_hooks()
