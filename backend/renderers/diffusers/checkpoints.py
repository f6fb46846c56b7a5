"""Loads a pipeline from a folder or a Hugging Face id: safetensors only, no code from the checkpoint.

diffusers and transformers initialise missing weights at random and only log it. Here each model's loading
report is checked, and anything missing or of another shape is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import CheckpointError, RepriseError, Unsupported
from ...core.model_files import FULL_HASH_BYTES, quiet_loading, user_path
from ...core.parsing import parse_json
from ...storage.checksums import check_folder
from .devices import models_of, weight_bytes
from .families import check_drawable
from .quantization import check_stored, unreadable

if TYPE_CHECKING:
    import torch

_LIBRARIES = ("diffusers", "transformers")
# Components that are not loaded: they are not needed for drawing, and pictures are not decoded by the
# pipeline.
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
# Without any of these files, a tokenizer would load empty and without an error.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read_index(folder: Path) -> dict[str, Any]:
    """A pipeline folder's model_index.json, checked: a supported class, parts from known libraries only.

    Raises CheckpointError and Unsupported.
    """
    path = folder / "model_index.json"
    if not os.path.isdir(folder):
        what = "a single file" if os.path.isfile(folder) else "nothing"
        raise CheckpointError(
            f"expected a pipeline's folder at {folder}, found {what}; "
            "give a folder made by save_pretrained, or a Hugging Face id"
        )
    if (folder / "modular_model_index.json").is_file() and not path.is_file():
        raise Unsupported(
            f"{folder} is a modular pipeline, which can be drawn with as an object in Python alone; let a "
            "ComfyUI workflow draw: --renderer comfyui:WORKFLOW.json@URL"
        )
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no diffusers pipeline: it has no model_index.json; give the folder that holds it"
        )
    try:
        index = parse_json(path.read_bytes())
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} is damaged: expected JSON with a _class_name; fetch it anew") from None
    if not isinstance(name, str):
        raise Unsupported(
            f"{folder} brings its own pipeline code {name!r}, which is never run; "
            "use a checkpoint of one of diffusers' classes"
        )
    check_drawable(name)
    for part, source in index.items():
        if part.startswith("_") or part in _UNUSED or not _names_a_class(source):
            continue
        if len(source) != 2 or not isinstance(source[1], str) or Path(part).name != part:
            raise CheckpointError(f"{path} is damaged: {part!r} is {source!r:.60}; fetch it anew")
        if source[0] not in _LIBRARIES:
            raise Unsupported(
                f"{folder}: its {part} is {source[1]} of {source[0]!r}, which is never run; "
                f"only classes of {' and '.join(_LIBRARIES)} are loaded"
            )
        if not (folder / part).is_dir():
            raise CheckpointError(f"{folder} lacks the folder of its {part}; fetch it anew")
        if "Tokenizer" in source[1] and not any((folder / part / name).is_file() for name in _VOCABULARIES):
            raise CheckpointError(
                f"{folder / part} lacks its vocabulary, one of {', '.join(_VOCABULARIES)}; fetch it anew"
            )
    return index


def find_pipeline(model: str | Path) -> Path:
    """The local folder of `model`; a Hugging Face id is downloaded. Raises CheckpointError."""
    folder = user_path(model)
    # A Hugging Face id is "name" or "owner/name"; anything else is a path.
    if os.path.exists(folder) or isinstance(model, Path) or not _HUB_ID.fullmatch(model):
        return folder
    from diffusers import DiffusionPipeline

    try:
        # The index is small: an unsupported class fails before the download.
        index: Any = DiffusionPipeline.load_config(model)
        check_drawable(str(index["_class_name"]))
        return Path(DiffusionPipeline.download(model, use_safetensors=True))
    except RepriseError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{model!r} is neither a folder here nor a Hugging Face id that can be fetched "
            f"({_line(error)}); check its name, the network or your access, or give a local folder"
        ) from error


def load_pipeline(folder: Path, dtype: torch.dtype, others: Mapping[str, torch.dtype] | None = None) -> Any:
    """The pipeline in a local folder: on the CPU, in eval mode, complete, with finite weights.

    Its parts are in `dtype`, those named in `others` in the dtype given there. Raises CheckpointError and
    Unsupported.
    """
    import diffusers

    check_folder(folder)
    index = read_index(folder)
    with quiet_loading():
        models = {
            part: load_model(folder / part, source, (others or {}).get(part, dtype))
            for part, source in index.items()
            if _names_a_class(source) and part not in _UNUSED and _has_weights(folder / part, source)
        }
        unused = {part: None for part in _UNUSED if part in index}
        if "requires_safety_checker" in index:
            unused["requires_safety_checker"] = False  # type: ignore[assignment]
        try:
            pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(
                folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **models, **unused
            )
        except Exception as error:
            raise CheckpointError(f"{folder} cannot be loaded ({_line(error)}); fetch it anew") from error
    _check_finite(pipeline, folder)
    return pipeline


def _names_a_class(source: Any) -> bool:
    """Whether an entry of model_index.json is a part that is there, and no setting, such as the layers of
    Krea 2's text encoder."""
    numbers = isinstance(source, list) and all(isinstance(one, (int, float)) for one in source)
    return isinstance(source, list) and source[:1] != [None] and not numbers


def _has_weights(folder: Path, source: list) -> bool:
    """Whether this part's class is a module with weights, not a tokenizer or scheduler."""
    import torch

    part = _class(folder, source)
    return isinstance(part, type) and issubclass(part, torch.nn.Module)


def _class(folder: Path, source: list) -> Any:
    import diffusers
    import transformers

    module = {"diffusers": diffusers, "transformers": transformers}[source[0]]  # `read_index` allows no other
    if not hasattr(module, source[1]):
        raise CheckpointError(
            f"{folder}: this {source[0]} has no class {source[1]!r}; update it, or fetch the checkpoint anew"
        )
    return getattr(module, source[1])


def load_model(folder: Path, source: list, dtype: torch.dtype) -> Any:
    """One model of a pipeline: its folder, and (library, class) as model_index.json names them. Raises
    CheckpointError and Unsupported."""
    files = [file.name for file in folder.glob("*.safetensors")]
    if not files:
        found = "only pickled weights" if any(folder.glob("*.bin")) else "no weights"
        raise CheckpointError(
            f"{folder} holds {found}; only safetensors are read, which cannot run code; "
            "fetch or convert the safetensors version"
        )
    check_stored(folder)
    # Some repositories hold only half-precision files, marked ".fp16" in the name.
    variant = "fp16" if all(".fp16" in name for name in files) else None
    try:
        model, report = _class(folder, source).from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            variant=variant,
            local_files_only=True,
            output_loading_info=True,
        )
    except RepriseError:
        raise
    except Exception as error:
        raise unreadable(folder, _line(error)) from error
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        wrong = sorted(map(str, report.get(kind) or ()))
        if wrong:
            raise CheckpointError(
                f"weights in {folder} do not fit its config ({kind.replace('_', ' ')}: "
                f"{len(wrong)}, first {wrong[0]}); fetch them anew"
            )
    return model.eval()


def _check_finite(pipeline: Any, folder: Path) -> None:
    """Raises CheckpointError for weights that are not finite. Models beyond 64 MiB are skipped: scanning many
    gigabytes would cost too much time."""
    import torch

    for name, model in models_of(pipeline).items():
        if weight_bytes(model) > FULL_HASH_BYTES:
            continue
        for key, weight in model.state_dict().items():
            if type(weight) not in (torch.Tensor, torch.nn.Parameter):
                continue  # a quantised one of torchao's or quanto's, which has no such check
            if weight.is_floating_point() and not torch.isfinite(weight).all():
                raise CheckpointError(
                    f"weights in {folder / name} are damaged: {key} is not finite; fetch them anew"
                )


def pipeline_fingerprint(pipeline: Any) -> str:
    """A fingerprint of a pipeline in memory: configs, tokenizers and weights (samples of a model over 64
    MiB)."""
    import torch

    digest = hashlib.sha256()
    for name, model in sorted(models_of(pipeline).items()):
        digest.update(f"{name}:{type(model).__name__}:{getattr(model, 'config', '')}\n".encode())
        whole = weight_bytes(model) <= FULL_HASH_BYTES
        for key, weight in sorted(model.state_dict().items()):
            digest.update(f"{key}:{tuple(weight.shape)}:{weight.dtype}\n".encode())
            if weight.device.type == "meta":
                continue  # offloaded layer by layer: its content is not accessible
            flat = weight.detach().flatten()
            if not whole and len(flat) > 64:
                flat = flat[torch.linspace(0, len(flat) - 1, 64, device=flat.device).long()]
            digest.update(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        tokenizer = getattr(pipeline, name, None)
        if tokenizer is not None:
            tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # FLUX.2's is a processor, around one
            vocabulary = sorted(tokenizer.get_vocab().items())
            digest.update(json.dumps([name, type(tokenizer).__name__, vocabulary]).encode())
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    """A library's error message on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.replace(os.path.expanduser("~"), "~")
    return text if len(text) <= 200 else text[:197] + "…"
