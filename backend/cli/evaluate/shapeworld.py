"""`reprise evaluate shapeworld`: what each part of the chain adds on ShapeWorld's held-out prompts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .. import checks, options
from ..renderer_options import renderer_options


@renderer_options
def shapeworld(
    task: options.Tasks = None,
    per_task: options.PerTask = 66,
    seeds: options.Repetitions = 4,
    best_of: options.BestOf = 8,
    prune: options.Prune = None,
    reflect: Annotated[
        int,
        typer.Option(metavar="ROUNDS", callback=options.between(0, 100), help="Rounds of mending at most."),
    ] = 2,
    variants: options.Variants = 4,
    renderer: options.Renderer = "shapeworld",
    rewriter: options.Rewriter = None,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    out: options.ResultOut = None,
    as_json: options.Json = False,
    *,
    drawing_options: dict[str, Any],
) -> None:
    """Measure what rewriting, best of N, pruning and reflection each add on held-out prompts.

    Rows: the prompt as typed, a template, the rewriter, best of N in full and
    pruned, reflection, and an oracle prompt that spells out a layout. The figure
    is the share of right pictures by the embedded detector.
    """
    from ...evaluation.shapeworld import evaluate_chain, select_tasks
    from ...factory import open_renderer, open_reward, open_rewriter, parse_rewriter, renderer_settings
    from .. import results

    tasks = select_tasks(task or [])
    wanted, prune = prune, checks.choose_prune(prune, renderer)
    drawing, writes = renderer_settings(renderer, steps, **drawing_options), parse_rewriter(rewriter)
    with results.claimed("evaluate shapeworld", out) as folder:
        drawer = open_renderer(drawing)
        prune = checks.prune_with(drawer, prune, asked=wanted is not None)
        with results.progress_bars(as_json, folder) as progress:
            result = evaluate_chain(
                rewriter=open_rewriter(writes),
                template=open_rewriter("template"),
                renderer=drawer,
                judge=open_reward("shapeworld"),
                per_task=per_task,
                seeds=seeds,
                best_of=best_of,
                prune=prune,
                rounds=reflect,
                variants=variants,
                seed=seed,
                tasks=tasks,
                folder=folder,
                progress=progress,
            )
        results.finish(result, folder, as_json)
