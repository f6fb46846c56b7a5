"""`reprise lab weights`: the recipes of the embedded weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...cli import options, terminal
from ...core.errors import Interrupted, UnknownName

app = typer.Typer(
    no_args_is_help=True,
    help="Recipes of the embedded weights. Each goes on where it stopped, and does nothing twice.",
)

Work = Annotated[
    Path, typer.Argument(metavar="WORK", show_default=False, help="The folder of all intermediate results.")
]


@app.command()
def build(
    work: Annotated[
        Path,
        typer.Option(metavar="FOLDER", parser=options.path, help="The folder of all intermediate results."),
    ] = Path("out/shapeworld"),
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=options.path,
            show_default="the package's own",
            help="Where the weights go.",
        ),
    ] = None,
    seed: options.Seed = 0,
) -> None:
    """Train all embedded weights from nothing: hours on two cores."""
    from ...core.model_files import EMBEDDED_WEIGHTS
    from ...storage.files import prepare_folder
    from .build import build

    try:
        build(prepare_folder(work), prepare_folder(out or EMBEDDED_WEIGHTS), seed, terminal.note)
    except KeyboardInterrupt as stop:
        raise Interrupted(f"stopped; the same command goes on from {work}") from stop


@app.command()
def rewriter(work: Work) -> None:
    """The tiny rewriter, from random weights."""
    from .rewriter import build

    _print(build(work, terminal.note))


@app.command()
def refiner(
    work: Work,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME…]",
            show_default="all of the ablation",
            help="log, decoder, blind, encoder-N, random-N, blind-N, ppo-N, ppo-random-N, ppo-blind-N, swap.",
        ),
    ] = None,
) -> None:
    """PRIP's ablation at small size; ppo-0 is the embedded refiner."""
    from .refiner import KINDS, SEEDS, build, swap

    trained = [f"{kind}-{seed}" for kind in KINDS for seed in SEEDS]
    for name in _known("refiner", names or [*trained, "swap"], ["log", "decoder", "blind", *trained, "swap"]):
        _print(swap(work) if name == "swap" else build(work, name, terminal.note))


@app.command()
def judge(
    work: Work,
    seeds: Annotated[
        list[int] | None,
        typer.Argument(metavar="[SEED…]", show_default=False, help="Tune one more judge from each seed."),
    ] = None,
) -> None:
    """The tiny judge: what it sees, what it says, then tuned on the embedded renderer's pictures."""
    from .judge import build, tune

    _print(build(work, terminal.note))
    for seed in seeds or ():
        _print(tune(work, seed=seed, log=terminal.note))


@app.command()
def turbo(work: Work) -> None:
    """The few-step renderer, distilled from the embedded FLUX."""
    from .turbo import build

    _print(build(work, terminal.note))


@app.command()
def ablation(
    work: Work,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME…]", show_default="all", help="Rewriters to make, such as sft-rl-0."),
    ] = None,
) -> None:
    """RePrompt's ablation at small size: supervised tuning, RL and reasons, each with and without."""
    from .ablation import STARTS, build

    all_names = ["base", "base-plain", "sft-plain", *STARTS]
    for name in _known("rewriter", names or all_names, all_names):
        _print(build(work, name, terminal.note))


def _known(kind: str, names: list[str], known: list[str]) -> list[str]:
    """`names`, all of which are `known`. Raises UnknownName."""
    for name in names:
        if name not in known:
            raise UnknownName(kind, name, known)
    return names


def _print(made: object) -> None:
    terminal.out().print(str(made), soft_wrap=True)
