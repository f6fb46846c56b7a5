"""What a renderer's name and options load: a diffusers folder, a Hugging Face id, a single file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...core.errors import BadInput
from ...core.model_files import folder_fingerprint
from ...storage.cache import Cache
from .checkpoints import find_pipeline, load_pipeline, read_index
from .comfyui_folders import ComfyuiFolders
from .single_files import Rest, SingleFile
from .weight_files import check_suffix, fingerprint_files, is_weight_file

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Loading:
    """How a model is loaded, beside its name; see `RendererSettings`."""

    loras: tuple[tuple[Path, float], ...] = ()
    """LoRA files, each with its strength."""
    base: str | Path | None = None
    parts: Mapping[str, Path] = field(default_factory=dict)
    comfyui: Path | None = None
    quantize: str | None = None
    """A method of `quantization.METHODS`."""


def parse_lora(text: str | Path) -> tuple[Path, float]:
    """FILE or FILE:STRENGTH -> (file, strength). Raises BadInput."""
    name, colon, number = str(text).rpartition(":")
    if not colon or os.path.isfile(text):
        return Path(text).expanduser(), 1.0
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
        if "/" in number or "\\" in number:  # the colon of a drive
            return Path(text).expanduser(), 1.0
    if not math.isfinite(strength):
        raise BadInput(f"--lora {text}: expected FILE or FILE:STRENGTH with a number such as 0.8")
    return Path(name).expanduser(), strength


def find_lora(text: str | Path, comfyui: Path | None) -> tuple[Path, float]:
    """(file, strength) of a LoRA: a path, or the name that a ComfyUI lists it by. Raises BadInput."""
    path, strength = parse_lora(text)
    if os.path.isfile(path):  # unlike Path's, it takes a name that is too long for any file
        return path, strength
    found = None if comfyui is None else ComfyuiFolders(comfyui).named(str(path), ["loras"])
    if found is None:
        raise BadInput(f"there is no LoRA {path}; name a .safetensors file")
    return found, strength


class Source(Protocol):
    """A model that was found and recognised, and not yet loaded."""

    pipeline_class: str
    """The name of a pipeline class of diffusers."""

    def load(self, dtype: torch.dtype, others: Mapping[str, torch.dtype] | None = None) -> tuple[Any, str]:
        """(pipeline on the CPU in eval mode, fingerprint of its weights); parts named in `others` have the
        dtype given there. Raises CheckpointError, Unsupported, and BadInput for parts that are nowhere."""
        ...


class Folder:
    """A folder in diffusers' layout."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pipeline_class = str(read_index(folder)["_class_name"])

    def load(self, dtype: torch.dtype, others: Mapping[str, torch.dtype] | None = None) -> tuple[Any, str]:
        return load_pipeline(self.folder, dtype, others), folder_fingerprint(self.folder)


class Files:
    """A single file, and where the rest of its pipeline is."""

    def __init__(self, path: Path, rest: Rest):
        self.rest = rest
        self.file = SingleFile(path, rest)
        self.pipeline_class = self.file.pipeline_class

    def load(self, dtype: torch.dtype, others: Mapping[str, torch.dtype] | None = None) -> tuple[Any, str]:
        opened = self.file.load(dtype, others)
        places = dict.fromkeys(opened.files.values())
        marks = [fingerprint_files(path for path in places if path.is_file())]
        if self.rest.base is not None:  # its configs count, too
            marks.append(folder_fingerprint(self.rest.base))
        # What is not in the weights, such as whether the file's name says turbo.
        return opened.pipeline, Cache.key(*marks, str(dict(opened.pipeline.config)))


def find_source(model: str | Path, loading: Loading) -> Source:
    """The model of a name. Raises BadInput, CheckpointError, Unsupported."""
    if not is_weight_file(str(model)) or Path(model).is_dir():
        for option, value in (("base", loading.base), ("part", loading.parts)):
            if value:
                raise BadInput(
                    f"--{option} completes a single file; {model} is a whole pipeline: leave it out"
                )
        return Folder(find_pipeline(model))
    comfyui = None if loading.comfyui is None else ComfyuiFolders(loading.comfyui)
    base = None if loading.base is None else find_pipeline(loading.base)
    return Files(find_file(model, comfyui), Rest(loading.parts, base, comfyui))


def find_file(model: str | Path, comfyui: ComfyuiFolders | None) -> Path:
    """A model's file: a path, or the name that a ComfyUI lists it by. Raises BadInput."""
    path = Path(model).expanduser()
    check_suffix(path)
    if path.is_file():
        return path
    if comfyui is not None:
        found = comfyui.named(str(model), ("checkpoints", "diffusion_models"))
        if found is not None:
            return found
        raise BadInput(
            f"there is no file {path}, and {comfyui.root} lists none of that name under checkpoints or "
            "diffusion_models; check the name"
        )
    raise BadInput(f"there is no file {path}; check its name, or give --comfyui DIR that lists it")
