"""Loads ComfyUI and the pack, for scripts that ComfyUI's Python runs in their own processes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any


def start(comfyui: str) -> None:
    """Make ComfyUI's modules importable, on the CPU. They take precedence over this folder's modules."""
    sys.argv = ["main.py", "--cpu"]
    sys.path[0] = comfyui

    import comfy.options

    comfy.options.enable_args_parsing()


def module(pack: str, name: str = "") -> Any:
    """The pack in the folder `pack`, or its module `name`, imported by path as ComfyUI imports it."""
    root = pack.replace(".", "_x_")
    if root not in sys.modules:
        where = importlib.util.spec_from_file_location(
            root, pack + "/__init__.py", submodule_search_locations=[pack]
        )
        assert where and where.loader
        sys.modules[root] = importlib.util.module_from_spec(where)
        where.loader.exec_module(sys.modules[root])
    return importlib.import_module(f"{root}.{name}") if name else sys.modules[root]
