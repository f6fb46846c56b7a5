"""The options of everything that draws. They are settings of the renderer, which describe them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..renderers.settings import RendererSettings
from .options import path

# Option -> (field of RendererSettings, type, metavar).
_OPTIONS: dict[str, tuple[str, Any, str | None]] = {
    "lora": ("lora", list[str], "FILE[:STRENGTH]"),
    "comfyui": ("comfyui", Path, "DIR"),
    "base": ("base", str, "NAME"),
    "part": ("parts", list[str], "NAME=FILE"),
    "size": ("size", str, "WxH"),
    "guidance": ("guidance", float, "SCALE"),
    "true_cfg": ("true_cfg", float, "SCALE"),
    "negative": ("negative_prompt", str, "WORDS"),
    "max_tokens": ("max_sequence_length", int, "N"),
    "scheduler": ("scheduler", str, "CLASS"),
    "dtype": ("dtype", str, "auto|float32|bfloat16|float16"),
    "quantize": ("quantize", str, "nf4|int8|fp8"),
    "device": ("device", str, "auto|cpu|cuda|cuda:N|mps"),
    "offload": ("offload", str, "auto|none|model|sequential"),
    "chunk": ("chunk", int, "N"),
    "vae_tiling": ("vae_tiling", bool, None),
}


def renderer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the renderer's options. It gets those that were used as `drawing_options`, a dict of
    settings, each as it was typed."""
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> Any:
        typed = {option: kwargs.pop(option, None) for option in _OPTIONS}
        used = {
            _OPTIONS[option][0]: str(value) if isinstance(value, Path) else value
            for option, value in typed.items()
            if value not in (None, [])
        }
        return command(*args, **kwargs, drawing_options=used)

    own = [one for one in signature.parameters.values() if one.name != "drawing_options"]
    added = [
        inspect.Parameter(
            option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(option)
        )
        for option in _OPTIONS
    ]
    with_options.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    with_options.__annotations__ = {
        **{name: kind for name, kind in command.__annotations__.items() if name != "drawing_options"},
        **{one.name: one.annotation for one in added},
    }
    return with_options


def _annotation(option: str) -> Any:
    field, kind, metavar = _OPTIONS[option]
    name = f"--{option.replace('_', '-')}"
    text = " ".join((RendererSettings.model_fields[field].description or "").split())
    shown = typer.Option(
        name if kind is not bool else f"{name}/--no-{name[2:]}",
        metavar=metavar,
        parser=path if kind is Path else None,
        help=text,
        show_default="the renderer's own",
        rich_help_panel="How it draws",
    )
    return Annotated[kind | None, shown]
