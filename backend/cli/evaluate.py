"""`reprise evaluate`: benchmarks with 95 % confidence intervals, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options

NAMES = ("shapeworld",)


def evaluate(
    name: Annotated[
        str, typer.Argument(metavar="BENCHMARK", show_default=False, help=", ".join(NAMES) + ".")
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="all",
            help="Only this task, may be given several times: "
            "single-object, two-object, counting, colors, position, color-attribution.",
        ),
    ] = None,
    per_task: Annotated[int, typer.Option(metavar="N", help="Held-out prompts of each task.")] = 66,
    seeds: Annotated[int, typer.Option(metavar="N", help="Repetitions of each prompt.")] = 4,
    best_of: Annotated[int, typer.Option("--best-of", metavar="N", help="Candidates of a search.")] = 8,
    prune: Annotated[
        str, typer.Option(metavar="|".join(options.PRUNING), help="How the pruned row stops candidates.")
    ] = "halving",
    reflect: Annotated[int, typer.Option(metavar="ROUNDS", help="Rounds of mending at most.")] = 2,
    variants: Annotated[int, typer.Option(metavar="K", help="Rewrites that the candidates share.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the prompts chosen and of every picture.")] = 0,
    renderer: options.Renderer = "shapeworld",
    rewriter: options.Rewriter = None,
    steps: options.Steps = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", show_default="out/evaluate-BENCHMARK", help="Where to write."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure how much better each part of the chain makes pictures. Called again, it goes on."""
    from ..runs import prepare_folder
    from . import results
    from .roles import find_renderer, find_rewriter, make_reward

    results.check_name("benchmark", name, NAMES)
    from ..benchmarks.shapeworld import chosen_tasks

    tasks = chosen_tasks(task or [])
    results.check_at_least_one(per_task=per_task, seeds=seeds, best_of=best_of, variants=variants)
    options.check_seed(seed)
    options.check_prune(prune)
    options.check_reflect(reflect)
    drawing, rewriting = find_renderer(renderer, steps), find_rewriter(rewriter)
    out = prepare_folder(out or Path("out") / f"evaluate-{name}")
    with results.progress_bars(as_json, out) as tell:
        from ..benchmarks.shapeworld import evaluate as measure

        result = measure(
            rewriter=rewriting(), template=find_rewriter("template")(), renderer=drawing(),
            judge=make_reward("shapeworld"), per_task=per_task, seeds=seeds, best_of=best_of, prune=prune,
            rounds=reflect, variants=variants, seed=seed, tasks=tasks, kept=out, tell=tell,
        )  # fmt: skip
    results.finish(result, out, as_json)
