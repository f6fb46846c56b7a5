"""`reprise models`: what is installed, where it is looked for, and what fits the device."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import CheckpointError
from ..registry import RENDERERS, REWARDS, REWRITERS

KINDS = ("renderers", "rewriters", "refiners", "judges")
EMBEDDED = Path(__file__).parent.parent / "shapeworld" / "weights"
HEADROOM = 1.25  # weights and what computing with them takes, as a multiple of the weights


@dataclass
class Found:
    """One set of weights. `bytes` on disk; `fault` says why it cannot be used, else None."""

    kind: str
    name: str
    path: str
    bytes: int
    parameters: int
    fault: str | None = None
    fits: bool | None = None


def model_folders() -> list[Path]:
    """Where `{renderers,rewriters,refiners,judges}` are looked for: $REPRISE_MODELS, the models
    folder of the ComfyUI that this pack lies in, `models/reprise` here."""
    folders = []
    if os.environ.get("REPRISE_MODELS"):
        folders.append(Path(os.environ["REPRISE_MODELS"]))
    pack = Path(__file__).resolve().parent.parent.parent
    if pack.parent.name == "custom_nodes":
        folders.append(pack.parent.parent / "models" / "reprise")
    folders.append(Path("models") / "reprise")
    return folders


def find_model(kind: str, name: str) -> Path | None:
    """The folder of the model that the user calls `name`, or None."""
    if Path(name).name != name:  # a path, not a name
        return None
    for root in model_folders():
        if (root / kind / name).is_dir():
            return root / kind / name
    return None


def installed(kind: str) -> list[str]:
    """Names of the models of a kind, sorted."""
    folders = (root / kind for root in model_folders())
    return sorted({p.name for folder in folders if folder.is_dir() for p in folder.iterdir() if p.is_dir()})


def count_parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its header alone. Raises CheckpointError for a damaged one."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size
            if length > size:
                raise CheckpointError(f"{path} is cut off or no safetensors file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        total = sum(_product(entry["shape"]) for entry in header.values())
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    if size != 8 + length + end:
        raise CheckpointError(f"{path} has {size:,} bytes, its header promises {8 + length + end:,}")
    return total


def look_at(kind: str, name: str, folder: Path) -> Found:
    """What lies in one model's folder."""
    files = sorted(folder.rglob("*.safetensors"))
    found = Found(kind, name, str(folder), sum(f.stat().st_size for f in files), 0)
    if not files:
        found.fault = "no .safetensors file in it"
    for file in files:
        try:
            found.parameters += count_parameters(file)
        except CheckpointError as error:
            found.fault = str(error)
    return found


def find_all() -> list[Found]:
    """Everything installed: the embedded weights first."""
    found = []
    if EMBEDDED.is_dir():
        for folder in sorted(p for p in EMBEDDED.iterdir() if p.is_dir()):
            kind = folder.name if folder.name.endswith("s") else folder.name + "s"
            found.append(look_at(kind, "embedded", folder))
    for root in model_folders():
        for kind in KINDS:
            if (root / kind).is_dir():
                found += [look_at(kind, p.name, p) for p in sorted((root / kind).iterdir()) if p.is_dir()]
    return found


def device() -> tuple[str, int | None]:
    """The device that models run on, in words, and its free bytes (None: not known)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)", None
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        free = None
    return f"CPU ({torch.get_num_threads()} threads)", free


def models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Show what is installed, where it is looked for, and what fits the device."""
    from . import terminal

    name, free = device()
    found = find_all()
    for model in found:
        if free is not None and model.fault is None:
            model.fits = model.bytes * HEADROOM <= free
    names = {"rewriters": sorted(REWRITERS), "renderers": sorted(RENDERERS), "rewards": sorted(REWARDS)}
    if as_json:
        terminal.print_json({
            "device": {"name": name, "free_bytes": free},
            "folders": [str(folder) for folder in model_folders()],
            "models": [asdict(model) for model in found],
            "names": names,
        })
        return
    rows = []
    for m in found:
        state = m.fault or ("fits" if m.fits else "does not fit" if m.fits is False else "not known")
        rows.append((m.kind, m.name, _millions(m.parameters), f"{m.bytes / 2**20:,.1f} MiB", state, m.path))
    terminal.print_table(None, ("kind", "name", "parameters", "size", "on this device", "path"), rows,
                         numbers=("parameters", "size"))
    out = terminal.out()
    for kind, known in names.items():
        out.print(f"[bold]{kind}[/bold]: {', '.join(known)}", soft_wrap=True)
    memory = f", {free / 2**30:.1f} GiB free" if free is not None else ""
    out.print(f"[bold]device[/bold]: {name}{memory}", soft_wrap=True)
    out.print("[bold]looked for in[/bold]: " + ", ".join(str(f) for f in model_folders())
              + " (set REPRISE_MODELS to add a folder)", soft_wrap=True)


def _product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"
