"""Checks of options that depend on each other, made before any work is spent. All raise BadInput."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import BadInput, UnknownName, Unsupported
from ..core.types import SEED_RANGE
from . import terminal
from .options import CORRECTIONS

if TYPE_CHECKING:
    from ..core.interfaces import Renderer


def check_seeds(seed: int, candidates: int) -> None:
    """Raises BadInput where one of the `candidates` seeds from `seed` on is out of range."""
    last = SEED_RANGE - candidates
    if seed > last:
        raise BadInput(f"--seed must be at most {last} for {candidates} candidates, got {seed}")


def correction_named(name: str) -> str:
    """The name of a correction in the search and in the record. Raises UnknownName."""
    if name not in CORRECTIONS:
        raise UnknownName("correction", name, CORRECTIONS)
    return name.replace("-", " ")


def choose_prune(prune: str | None, renderer: str) -> str:
    """The pruning asked for; by default halving, or none with a ComfyUI server, which gives no previews.

    Raises UnknownName for an unknown pruning, Unsupported for pruning without previews.
    """
    from ..factory import parse_renderer
    from ..search.pruning import read_pruning

    previews = parse_renderer(renderer).capabilities.previews
    prune = prune or ("halving" if previews else "none")

    read_pruning(prune)
    if prune != "none" and not previews:
        raise Unsupported(
            f"--prune {prune} needs previews, which a ComfyUI server does not give; take "
            "--prune none, or a PARM Best-of-N node in the workflow"
        )
    return prune


def prune_with(drawer: Renderer, prune: str, asked: bool) -> str:
    """`prune` for an opened renderer; "none" for one without previews, which is noted.

    Raises Unsupported where pruning was `asked` for, and is no default.
    """
    if prune == "none" or drawer.capabilities.previews:
        return prune
    why = drawer.capabilities.no_previews or f"renderer {drawer.name!r} gives no previews"
    elsewhere = "let a ComfyUI workflow with a PARM Best-of-N node draw: --renderer comfyui:WORKFLOW.json@URL"
    if asked:
        raise Unsupported(
            f"--prune {prune} needs previews, and {why}; take --prune none, another --scheduler, or "
            f"{elsewhere}"
        )
    terminal.note(f"Nothing is pruned: {why}. To prune, take another --scheduler, or {elsewhere}.")
    return "none"


@contextmanager
def claim_file_with_pictures(source: str, out: Path, command: str) -> Iterator[None]:
    """Hold `out`, and `out`.pictures beside it, while `command` writes to them.

    Raises BadInput where `out` is the source, was not made by the same command or was changed since, or where
    another process writes to it.
    """
    from ..storage.files import prepare_folder
    from ..storage.outputs import check_made, claim

    if Path(source).absolute() == out.absolute():
        raise BadInput(f"SOURCE and --out are both {out}; give two files")
    prepare_folder(out.absolute().parent)
    pictures = out.with_name(f"{out.name}.pictures")
    beside = [out.with_name(out.name + end) for end in ("", ".rollouts.jsonl", ".rollouts.json")]
    with claim(pictures, command, [path.absolute() for path in beside]):
        check_made(pictures, out)
        yield
