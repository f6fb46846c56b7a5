"""`reprise models`: what is installed, what could be, where it is looked for, what fits the device."""

from __future__ import annotations

import math
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import CheckpointError
from ..core.model_files import EMBEDDED_WEIGHTS, model_folders
from ..core.parsing import parse_json
from ..factory import RENDERERS, REWARDS, REWRITERS, TEXT_REWARDS
from ..rewards.published import files
from .device import find_device

KINDS = ("renderers", "rewriters", "refiners", "judges")
HEADROOM = 1.25  # weights and what computing with them takes, as a multiple of the weights


@dataclass
class InstalledModel:
    """One set of weights. `bytes` on disk; `fault` says why it cannot be used, else None."""

    kind: str
    name: str
    path: str
    bytes: int
    parameters: int
    fault: str | None = None
    fits: bool | None = None


@dataclass
class PublishedJudge:
    """One judge with files of its own. `parameters` it computes with, float32 on a CPU; `files` with the
    path of each, None where it is not there; `advice` says what to put where, None for an installed one."""

    name: str
    parameters: int
    bytes: int
    files: list[dict[str, str | int | None]]
    advice: str | None
    fits: bool | None = None


def find_judges() -> list[PublishedJudge]:
    """All judges with published files, installed or not."""
    found = []
    for name, needs in files.JUDGES.items():
        paths = [files.find(wanted) for wanted in needs.files]
        lost = [wanted for wanted, path in zip(needs.files, paths) if path is None]
        parts = [
            {
                "name": wanted.name,
                "bytes": path.stat().st_size if path else wanted.bytes,
                "from": wanted.page,
                "path": str(path) if path else None,
            }
            for wanted, path in zip(needs.files, paths)
        ]
        size = sum(part["bytes"] for part in parts)
        found.append(
            PublishedJudge(name, needs.parameters, size, parts, files.advice(lost) if lost else None)
        )
    return found


def count_parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its header alone. Raises CheckpointError for a damaged one."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size
            if length > size:
                raise CheckpointError(f"{path} is cut off or no safetensors file")
            header = parse_json(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        total = sum(math.prod(entry["shape"]) for entry in header.values())
    except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    if size != 8 + length + end:
        raise CheckpointError(f"{path} has {size:,} bytes, its header promises {8 + length + end:,}")
    return total


def look_at(kind: str, name: str, folder: Path) -> InstalledModel:
    """What lies in one model's folder."""
    files = sorted(folder.rglob("*.safetensors"))
    found = InstalledModel(kind, name, str(folder), sum(f.stat().st_size for f in files), 0)
    if not files:
        found.fault = "no .safetensors file in it"
    for file in files:
        try:
            found.parameters += count_parameters(file)
        except CheckpointError as error:
            found.fault = str(error)
    return found


def find_all() -> list[InstalledModel]:
    """Everything installed that is a folder of safetensors: the embedded weights first. Judges with
    published files of their own are `find_judges`'s."""
    found = []
    known = {wanted.folder for needs in files.JUDGES.values() for wanted in needs.files}
    if EMBEDDED_WEIGHTS.is_dir():
        for folder in sorted(p for p in EMBEDDED_WEIGHTS.iterdir() if p.is_dir()):
            kind, dash, variant = folder.name.partition("-")
            kind = kind if kind.endswith("s") else kind + "s"
            found.append(look_at(kind, f"embedded{dash}{variant}", folder))
    for root in model_folders():
        for kind in KINDS:
            if (root / kind).is_dir():
                found += [
                    look_at(kind, p.name, p)
                    for p in sorted((root / kind).iterdir())
                    if p.is_dir() and not (kind == "judges" and p.name in known)
                ]
    return found


def models(
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, nothing else.")] = False,
    get: Annotated[
        str | None, typer.Option(metavar="JUDGE", help="First download this judge's files from Hugging Face.")
    ] = None,
) -> None:
    """Show which models are installed, in which folders they are looked for, and what fits the device."""
    from . import terminal

    if get is not None:
        from ..rewards.published.download import fetch

        fetch(get, terminal.note)
    device, found, judges = find_device(), find_all(), find_judges()
    free = device.free_bytes
    if free is not None:
        for model in found:
            if model.fault is None:
                model.fits = model.bytes * HEADROOM <= free
        for judge in judges:
            weights = judge.bytes if device.gpu else judge.parameters * 4
            judge.fits = weights * HEADROOM <= free
    rewards = sorted({*REWARDS, *TEXT_REWARDS})
    names = {"rewriters": sorted(REWRITERS), "renderers": sorted(RENDERERS), "rewards": rewards}
    if as_json:
        terminal.print_json(
            {
                "device": asdict(device),
                "folders": [str(folder) for folder in model_folders()],
                "models": [asdict(model) for model in found],
                "judges": [asdict(judge) for judge in judges],
                "names": names,
            }
        )
        return
    rows = []
    for m in found:
        rows.append(
            (m.kind, m.name, _millions(m.parameters), _mebibytes(m.bytes), m.fault or _state(m.fits), m.path)
        )
    for j in judges:
        if j.advice is None:
            rows.append(
                (
                    "judges",
                    j.name,
                    _millions(j.parameters),
                    _mebibytes(j.bytes),
                    _state(j.fits),
                    j.files[0]["path"],
                )
            )
    terminal.print_table(
        None,
        ("kind", "name", "parameters", "size", "on this device", "path"),
        rows,
        numbers=("parameters", "size"),
    )
    out = terminal.out()
    for j in judges:
        if j.advice is not None:
            out.print(f"[bold]not installed[/bold]: {j.name} ({_state(j.fits)}): {j.advice}", soft_wrap=True)
    for kind, known in names.items():
        out.print(f"[bold]{kind}[/bold]: {', '.join(known)}", soft_wrap=True)
    memory = f"{free / 2**30:.1f} GiB free" if free is not None else "free memory not known"
    out.print(
        f"[bold]device[/bold]: {device.name}, {memory}; torch {device.torch or 'not installed'}",
        soft_wrap=True,
    )
    out.print(
        "[bold]looked for in[/bold]: "
        + ", ".join(str(f) for f in model_folders())
        + " (set REPRISE_MODELS to add a folder)",
        soft_wrap=True,
    )


def _state(fits: bool | None) -> str:
    return "fits" if fits else "does not fit" if fits is False else "not known"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"
