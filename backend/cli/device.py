"""The device that models run on, found without torch: importing it takes seconds, and it may be absent."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

ASK = ["--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
SECONDS = 10  # that nvidia-smi may take


@dataclass(frozen=True)
class Device:
    """`name` in words; `gpu`: whether it is one; `free_bytes` None where they are not known; `torch`: its
    version, None where it is not installed."""

    name: str
    gpu: bool
    free_bytes: int | None
    torch: str | None


def find_device() -> Device:
    """The GPU that the installed build of torch uses (of several the first visible one), else the CPU."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    build = (torch or "").partition("+")[2]
    if build.startswith(("rocm", "xpu")):
        return Device(f"GPU of torch's {build} build", True, None, torch)
    if build != "cpu":
        if found := _nvidia():
            return Device(found[0], True, found[1], torch)
        if platform.system() == "Darwin" and platform.machine() == "arm64":
            return Device("Apple GPU", True, None, torch)
    return Device(f"CPU, {os.cpu_count()} cores", False, _free_memory(), torch)


def _nvidia() -> tuple[str, int] | None:
    """Name and free bytes of the first visible GPU by nvidia-smi, None where there is none."""
    program = shutil.which("nvidia-smi")
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if program is None or first in ("", "-1"):
        return None
    try:
        done = subprocess.run(  # noqa: S603 no shell; `first` is the user's own environment, one argument
            [program, "-i", first, *ASK], capture_output=True, text=True, timeout=SECONDS, check=True
        )
        name, _, free = done.stdout.strip().splitlines()[0].rpartition(",")
        return name.strip(), int(free) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _free_memory() -> int | None:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
