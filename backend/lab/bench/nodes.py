"""The cost of the nodes in a real ComfyUI on the CPU, as ratios measured in one run of its Python.

`inside/measure.py` measures there, in its own process; here its figures become rows.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.errors import BadInput, RepriseError
from .parm import ratio_interval

PACK = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).parent / "inside" / "measure.py"
IMPORT_GOAL = 0.15  # seconds


def find_comfyui() -> tuple[Path, Path]:
    """(ComfyUI's folder, its Python): COMFYUI_PATH and COMFYUI_PYTHON, else ~/ComfyUI and its `.venv`.

    Raises BadInput if one of them is missing.
    """
    folder = Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser()
    python = Path(os.environ.get("COMFYUI_PYTHON", folder / ".venv" / "bin" / "python")).expanduser()
    if not (folder / "main.py").is_file():
        raise BadInput(f"no ComfyUI at {folder}; set COMFYUI_PATH to its folder")
    if not python.is_file():
        raise BadInput(f"no Python for ComfyUI at {python}; set COMFYUI_PYTHON to it")
    return folder, python


def bench(
    *, pairs: int = 12, steps: int = 16, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """The result (design.md 5) of `pairs` alternating runs of stock nodes and of PARM with one candidate.

    A row's `overall` is a ratio with its 95 % interval: of wall times, of the delay of an interrupt to one
    denoiser step, and of the import time to its goal. Raises BadInput without a ComfyUI.
    """
    folder, python = find_comfyui()
    if progress:
        progress("nodes", 0, 1)
    done = subprocess.run(
        [str(python), str(SCRIPT), str(folder), str(PACK), str(pairs), str(steps)],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        errors = done.stderr.strip().splitlines()
        raise RepriseError(f"measuring inside ComfyUI failed: {errors[-1] if errors else 'no output'}")
    if progress:
        progress("nodes", 1, 1)
    return result_of(json.loads(lines[-1]), pairs, steps)


def result_of(found: dict[str, Any], pairs: int, steps: int) -> dict[str, Any]:
    """The result (design.md 5) from the script's output."""
    rows = []
    for width, seconds in found["pairs"].items():
        stock, parm = zip(*seconds)
        name = f"PARM, N = 1, over KSampler + decode + scorer, {width} px"
        cost = {"seconds": _middle(parm), "stock_seconds": _middle(stock)}
        rows.append(_row(name, ratio_interval(parm, stock), **cost))
    delays, step = zip(*found["interrupts"])
    name = "interrupt to stop, over one denoiser step of 8 candidates"
    rows.append(_row(name, ratio_interval(delays, step), seconds=max(delays), stock_seconds=step[0]))
    share = round(found["import"] / IMPORT_GOAL, 4)
    rows.append(_row(f"import of the pack, over {IMPORT_GOAL} s", [share] * 3, seconds=found["import"]))
    return {
        "name": "nodes",
        "rows": rows,
        "settings": {
            "comfyui": found["comfyui"],
            "pairs": pairs,
            "steps": steps,
            "sampler": "euler, CFG 3",
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        },
    }


def _row(name: str, ratio: list[float], **seconds: float) -> dict[str, Any]:
    return {
        "name": name,
        "overall": ratio,
        "tasks": {},
        "cost": {key: round(value, 4) for key, value in seconds.items()},
    }


def _middle(values: tuple[float, ...]) -> float:
    return sorted(values)[len(values) // 2]
