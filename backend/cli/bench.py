"""`reprise bench`: performance, as ratios measured in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInput
from . import options

NAMES = ("parm", "nodes")


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help=", ".join(NAMES) + ".")],
    per_task: Annotated[int, typer.Option(metavar="N", help="Held-out prompts of each task.")] = 8,
    best_of: Annotated[int, typer.Option("--best-of", metavar="N", help="Candidates of a search.")] = 16,
    pool: Annotated[
        int, typer.Option(metavar="N", help="Candidates drawn of each prompt, a multiple of --best-of.")
    ] = 64,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Compare schedules on train prompts first, and take the best.")
    ] = False,
    timed: Annotated[int, typer.Option(metavar="N", help="Prompts drawn for the wall times.")] = 6,
    seed: Annotated[int, typer.Option(help="Of the prompts chosen and of every picture.")] = 0,
    pairs: Annotated[int, typer.Option(metavar="N", help="nodes: runs of each of the two sides.")] = 12,
    renderer: options.Renderer = "shapeworld",
    steps: options.Steps = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", show_default="out/bench-NAME", help="Where to write.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """parm: what pruning saves and keeps, full and pruned from the same seeds.

    nodes: what our nodes cost inside ComfyUI (COMFYUI_PATH, COMFYUI_PYTHON) beside its own.
    """
    from ..runs import prepare_folder
    from . import results
    from .roles import find_renderer, make_reward

    results.check_name("bench", name, NAMES)
    results.check_at_least_one(per_task=per_task, best_of=best_of, pool=pool, pairs=pairs)
    if timed < 0:
        raise BadInput(f"--timed must be 0 or more, got {timed}")
    options.check_seed(seed)
    drawing = find_renderer(renderer, steps) if name == "parm" else None
    out = prepare_folder(out or Path("out") / f"bench-{name}")
    with results.progress_bars(as_json, out) as tell:
        if drawing is None:
            from ..benchmarks import nodes

            results.finish(nodes.bench(pairs=pairs, steps=steps or 16, tell=tell), out, as_json)
            return
        from ..benchmarks.parm import bench as measure

        result = measure(renderer=drawing(), judge=make_reward("shapeworld"), per_task=per_task, n=best_of,
                         pool=pool, seed=seed, sweep=sweep, timed=timed, tell=tell)  # fmt: skip
    results.finish(result, out, as_json)
