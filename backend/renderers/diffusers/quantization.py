"""Weights that are stored quantised: whether they can be read here."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...core.errors import CheckpointError, Unsupported

# quant_method of a config.json -> (its module, how pip calls it)
PACKAGES = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "torchao": ("torchao", "torchao"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "gguf": ("gguf", "gguf"),
    "modelopt": ("modelopt", "nvidia-modelopt"),
    "auto-round": ("auto_round", "auto-round"),
    "sdnq": ("sdnq", "sdnq"),
}


def stored_quantization(folder: Path) -> str | None:
    """How a part of a pipeline is quantised, by its config.json; None if it is not."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the loader says what is wrong with it
    settings = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(settings, dict):
        return None
    if "quant_method" not in settings and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return "bitsandbytes"  # as its first versions wrote it
    return str(settings.get("quant_method"))


def check_stored(folder: Path) -> None:
    """Raises Unsupported for a part whose quantisation needs a package that is not here, or is unknown."""
    method = stored_quantization(folder)
    if method is None:
        return
    if method not in PACKAGES:
        raise Unsupported(
            f"{folder} is quantised by {method}, which is not known here; take the version that is not, or "
            f"one of {', '.join(PACKAGES)}"
        )
    module, package = PACKAGES[method]
    if not is_installed(module):
        raise Unsupported(
            f"{folder} is quantised by {method}, whose package is not installed: pip install {package}"
        )


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a module in a package
        return False


def unreadable(folder: Path, cause: str) -> CheckpointError | Unsupported:
    """The error for weights that a library did not load."""
    method = stored_quantization(folder)
    if method is not None:
        return Unsupported(
            f"{folder} is quantised by {method} and cannot be loaded here ({cause}); update {method}, take a "
            "machine that it runs on, or the version that is not quantised"
        )
    return CheckpointError(
        f"weights in {folder} cannot be read: truncated, tampered with, or of another model ({cause}); fetch "
        "them anew"
    )
