"""A name, with settings -> a renderer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.config import parse_config
from ..core.errors import BadInput, UnknownName, Unsupported
from ..core.registry import RENDERERS, resolve
from ..renderers.diffusers.weight_files import check_suffix, is_weight_file
from ..renderers.settings import RendererSettings, sides
from .names import RendererName, split_name

if TYPE_CHECKING:
    from ..core.interfaces import Renderer
    from ..renderers.diffusers.loading import Loading, Source
    from ..storage.cache import Cache

DEFAULT_RENDERER = "shapeworld"
OF_A_MODEL = {"diffusers", "comfyui"}  # not to be named alone


def parse_renderer(name: str) -> RendererName:
    """What a name means: a line of the registry, a folder in diffusers' layout, a Hugging Face name
    "owner/model", a single file of weights, or comfyui:WORKFLOW.json@URL.

    Nothing is loaded and nobody is asked. Raises UnknownName with the near match, BadInput.
    """
    kind, model, url = split_name(name)
    if kind == "comfyui" or name == "comfyui":
        from ..renderers.comfyui.renderer import parse_name

        file, urls, _ = parse_name(name.partition(":")[2])
        return RendererName(name, "comfyui", str(file), ",".join(urls))
    if url:
        raise UnknownName("kind of renderer", kind, ["comfyui"])
    if name in RENDERERS and name not in OF_A_MODEL:
        return RendererName(name, name)
    if is_weight_file(name) and not os.path.isdir(name):
        check_suffix(Path(name))
        return RendererName(name, "diffusers", name)
    if "/" in name or os.path.isdir(name):
        return RendererName(name, "diffusers", name)
    if name == "diffusers":
        raise BadInput("--renderer diffusers names no model; give its folder or Hugging Face name instead")
    raise UnknownName("renderer", name, RENDERERS.keys() - OF_A_MODEL)


def renderer_settings(
    name: str, steps: int | None = None, parts: Sequence[str] = (), **more: Any
) -> RendererSettings:
    """What the options of a command say of a renderer, checked; `parts` are NAME=FILE, `more` are further
    fields of its settings. Raises as `check_renderer` does."""
    files = {}
    for word in parts:
        part, equals, file = word.partition("=")
        if not (part and equals and file):
            raise BadInput(f"--part {word}: expected NAME=FILE, such as vae=ae.safetensors")
        files[part] = file
    settings = parse_config(
        RendererSettings, {"name": name, "steps": steps, "parts": files, **more}, "the renderer"
    )
    check_renderer(settings)
    return settings


def check_renderer(settings: RendererSettings) -> RendererName:
    """Read the name, and see that there is such a renderer with such settings; nothing is loaded and nobody
    is asked. Raises UnknownName, and BadInput for a workflow that cannot be one, a file that is not there
    and a setting that this renderer does not have."""
    name = parse_renderer(settings.name)
    _options(name, settings)
    if name.kind == "comfyui":
        _workflow(settings)
    if name.kind == "diffusers" and is_weight_file(name.model) and not os.path.isdir(name.model):
        from ..renderers.diffusers.comfyui_folders import ComfyuiFolders
        from ..renderers.diffusers.loading import find_file

        find_file(name.model, ComfyuiFolders(settings.comfyui) if settings.comfyui else None)
    if settings.quantize is not None:
        from ..renderers.diffusers.quantization import check_quantize

        check_quantize(settings.quantize)
    if settings.lora:
        from ..renderers.diffusers.loading import find_lora

        for one in settings.lora:
            find_lora(one, settings.comfyui)
    return name


def open_renderer(settings: RendererSettings, device: str = "auto", cache: Cache | None = None) -> Renderer:
    """The renderer of some settings. One with weights computes on `device`; one that keeps its pictures puts
    them into `cache` as soon as they are there.

    Raises what `check_renderer` does, CheckpointError, Unsupported, and RenderFailed where no server answers.
    """
    name = check_renderer(settings)
    made, able = resolve("renderer", RENDERERS, name.kind), name.capabilities
    options = _options(name, settings)
    if cache is not None and able.keeps_pictures:
        options["cache"] = cache
    if device != "auto" and able.weights:
        options.setdefault("device", device)
    if name.kind == "comfyui":
        options.pop("steps", None)  # the workflow has them
        urls = name.url.split(",")
        return made(_workflow(settings, urls), urls, **options)
    return made(*filter(None, [name.model]), **options)


def parse_pipeline(name: str) -> RendererName:
    """What the name of a renderer means that is to be trained. Raises what `parse_renderer` does, and
    Unsupported for one without weights on this machine."""
    found = parse_renderer(name)
    if not found.capabilities.weights:
        raise Unsupported(f"renderer {name!r} has no weights that can be trained; give a diffusers folder")
    return found


def source_of(name: str, loading: Loading | None = None) -> tuple[Source, int | None]:
    """(a renderer's weights, not yet loaded; tokens of text that an embedded one was trained with). Raises
    what `parse_pipeline` does, and BadInput, CheckpointError, Unsupported."""
    from ..renderers.diffusers.loading import Loading, find_source

    found = parse_pipeline(name)
    made = resolve("renderer", RENDERERS, found.kind)
    model = name if found.kind == "diffusers" else made.folder
    return find_source(model, loading or Loading()), made.capabilities.fixed.get("max_sequence_length")


def _options(name: RendererName, settings: RendererSettings) -> dict[str, Any]:
    """What the constructor is given of the settings. Raises BadInput for what it does not take."""
    given = settings.model_dump(exclude={"name", "batch"}, exclude_defaults=True)
    if "size" in given:
        given["size"] = sides(given["size"])
    able = name.capabilities
    for key, only in able.fixed.items():  # not to be passed on where it is the same
        if given.pop(key, only) != only:
            raise BadInput(
                f"renderer {name.text!r} draws with {key}={only} alone, got {getattr(settings, key)}; "
                "leave it out"
            )
    for key in given.keys() - able.settings:
        raise BadInput(f"renderer {name.text!r} does not take {key}; leave it out")
    return given


def _workflow(settings: RendererSettings, urls: Sequence[str] = ()) -> Any:
    """The workflow that a name means; None for an editor's one as long as no server is asked."""
    from ..renderers.comfyui.classes import object_info
    from ..renderers.comfyui.files import read_saved
    from ..renderers.comfyui.renderer import parse_name
    from ..renderers.comfyui.workflow import prepare

    file, _, sockets = parse_name(settings.name.partition(":")[2])
    saved = read_saved(file)
    if saved.graph is None and not urls:
        return None
    classes = object_info(urls) if urls else None
    return prepare(saved.to_graph(classes), sockets, settings.steps, str(file), classes)
