"""For scripts that ComfyUI's Python runs as processes of their own: ComfyUI, and the pack as it is there."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any


def start(comfyui: str) -> None:
    """Makes ComfyUI's modules importable, on the CPU. They shadow this folder's and the script's own."""
    sys.argv = ["main.py", "--cpu"]
    sys.path[0] = comfyui

    import comfy.options

    comfy.options.enable_args_parsing()


def module(pack: str, name: str = "") -> Any:
    """The pack in the folder `pack`, or a module of it, imported by path as ComfyUI does: its name is its
    path."""
    root = pack.replace(".", "_x_")
    if root not in sys.modules:
        where = importlib.util.spec_from_file_location(
            root, pack + "/__init__.py", submodule_search_locations=[pack]
        )
        assert where and where.loader
        sys.modules[root] = importlib.util.module_from_spec(where)
        where.loader.exec_module(sys.modules[root])
    return importlib.import_module(f"{root}.{name}") if name else sys.modules[root]
