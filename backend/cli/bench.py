"""`reprise bench`: performance, as ratios measured in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInput
from . import options

NAMES = ("parm", "nodes", "rewards")


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
    pairs: Annotated[
        int | None, typer.Option(metavar="N", show_default="nodes: 12, rewards: 5", help="Runs of each side.")
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="NAME", show_default="all", help="rewards: image-reward, hps-v2.1."),
    ] = None,
    images: Annotated[int, typer.Option(metavar="N", help="rewards: pictures of a call.")] = 4,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="PYTHON", help="rewards: a Python that has packages image-reward and hpsv2."),
    ] = None,
    renderer: options.Renderer = "shapeworld",
    steps: options.Steps = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", show_default="out/bench-NAME", help="Where to write.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """parm: what pruning saves and keeps, full and pruned from the same seeds.

    nodes: what our nodes cost inside ComfyUI (COMFYUI_PATH, COMFYUI_PYTHON) beside its own.

    rewards: pictures per second and memory of the judges, beside the published packages with --reference;
    random weights of full size, some gigabytes in the folder for temporary files.
    """
    from ..benchmarks import nodes, parm, rewards
    from ..runs import prepare_folder
    from . import results
    from .roles import find_renderer, make_reward

    results.check_name("bench", name, NAMES)
    results.check_at_least_one(per_task=per_task, best_of=best_of, pool=pool, images=images)
    if pairs is not None:
        results.check_at_least_one(pairs=pairs)
    if timed < 0:
        raise BadInput(f"--timed must be 0 or more, got {timed}")
    options.check_seed(seed)
    drawing = find_renderer(renderer, steps) if name == "parm" else None
    if name == "rewards":
        rewards.check(judges or (), reference)
    out = prepare_folder(out or Path("out") / f"bench-{name}")
    with results.progress_bars(as_json, out) as tell:
        if name == "nodes":
            result = nodes.bench(pairs=pairs or 12, steps=steps or 16, tell=tell)
        elif name == "rewards":
            result = rewards.bench(judges=judges or (), reference=reference, images=images, pairs=pairs or 5,
                                   seed=seed, tell=tell)  # fmt: skip
        else:
            assert drawing
            result = parm.bench(renderer=drawing(), judge=make_reward("shapeworld"), per_task=per_task,
                                n=best_of, pool=pool, seed=seed, sweep=sweep, timed=timed,
                                tell=tell)  # fmt: skip
    results.finish(result, out, as_json)
