"""A name -> a rewriter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import BadInput, UnknownName
from ..core.model_files import find_model, installed_models
from ..core.registry import REWRITERS, resolve
from .names import RewriterName, split_name
from .renderers import DEFAULT_RENDERER, parse_renderer

if TYPE_CHECKING:
    from ..core.interfaces import Rewriter

DEFAULT_REWRITER = "reprompt"
OF_FOLDERS = ("reprompt", "prip", "promptist")  # kinds of which there may be many folders
KINDS = {"prip": ("refiners",), "reprompt": ("rewriters",)}  # where models of a kind are installed


def parse_rewriter(name: str | None, renderer: str = DEFAULT_RENDERER) -> RewriterName:
    """What a name means: a line of the registry, a folder of weights, the name of one under
    models/reprise/rewriters or refiners, KIND:FOLDER where the kind does not follow from the weights, or
    chat:MODEL@URL. Without a name the embedded one, for a `renderer` of pictures that it knows.

    Nothing is loaded and nobody is asked. Raises UnknownName with the near match, BadInput.
    """
    if name is None:
        if not parse_renderer(renderer).capabilities.shapeworld:
            raise BadInput(
                f"--renderer {renderer} needs a --rewriter: the embedded one knows coloured "
                "shapes only; take none, a folder of weights, or chat:MODEL@URL"
            )
        name = DEFAULT_REWRITER
    kind, model, url = split_name(name)
    if url or name == "chat" or kind == "chat" or (kind and "//" in model):
        return _chat(name, kind, model, url)
    if kind in OF_FOLDERS:
        return _of_folder(name, kind, model)
    if name == "promptist":
        return _of_folder(name, name, "")
    if name in REWRITERS:
        return RewriterName(name, name)
    return _of_folder(name, None, name)


def open_rewriter(name: str | RewriterName, device: str = "auto", dtype: str | None = None) -> Rewriter:
    """The rewriter of a name. One with weights computes on `device`, by default a GPU if there is one, in
    `dtype`, a torch name. Raises what `parse_rewriter` does, and CheckpointError."""
    name = name if isinstance(name, RewriterName) else parse_rewriter(name)
    made = resolve("rewriter", REWRITERS, name.kind)
    if name.url:
        return made(name.url, name.model)
    given = {"device": None if device == "auto" else device, "dtype": dtype}
    return made(*filter(None, [name.model]), **(given if made.capabilities.weights else {}))


def _chat(text: str, kind: str, model: str, url: str) -> RewriterName:
    """A model behind an endpoint."""
    from ..net.credentials import check_url

    if kind not in ("chat", "http", "https", ""):
        raise UnknownName("kind of rewriter", kind, ["chat"])
    if kind != "chat" or not (model and url):
        raise BadInput(
            "expected --rewriter chat:MODEL@URL, for example "
            f"chat:qwen3:8b@http://127.0.0.1:11434/v1, got {text[:80]}"
        )
    return RewriterName(text, kind, model, check_url(url))


def _of_folder(text: str, kind: str | None, name: str) -> RewriterName:
    """A model in a folder, by its path or name, or of a hub's name; without a kind, the one that it says."""
    from ..rewriters.prip.rewriter import is_refiner

    if not name:
        raise BadInput(f"--rewriter {text!r} names no model; expected {kind or 'prip'}:FOLDER")
    folder = find_model("rewriters", name) or find_model("refiners", name)
    if folder is None and not ("/" in name or os.path.isdir(name)):
        kinds = KINDS.get(kind or "", ("rewriters", "refiners"))
        known = [one for each in kinds for one in installed_models(each)]
        if kind and not known:
            raise BadInput(f"there is no model {name!r}, and none is installed; expected {kind}:FOLDER")
        raise UnknownName("model" if kind else "rewriter", name, known if kind else [*REWRITERS, *known])
    where = str(folder or name)
    return RewriterName(text, kind or ("prip" if is_refiner(Path(where)) else "reprompt"), where)
