"""`reprise evaluate rewriters`: rewriters compared on ShapeWorld's held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import typer

from ...core.errors import BadInput
from .. import options
from ..renderer_options import renderer_options


@renderer_options
def rewriters(
    rows: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=REWRITER[,REWRITER]…",
            show_default=False,
            help="A row and its rewriter, named as for `reprise render --rewriter`; with commas, the "
            "rewriters of several training seeds.",
        ),
    ],
    task: options.Tasks = None,
    per_task: options.PerTask = 66,
    seeds: options.Repetitions = 4,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="the best row", help="The row that gains are over."),
    ] = None,
    judge: options.MeasuringJudge = "shapeworld-strict",
    renderer: options.Renderer = "shapeworld",
    steps: options.Steps = None,
    seed: options.Seed = 0,
    out: options.ResultOut = None,
    as_json: options.Json = False,
    *,
    drawing_options: dict[str, Any],
) -> None:
    """Compare rewriters by the pictures that their rewrites give.

    One picture is drawn for each prompt, seed and greedy rewrite. Two rows are
    always there: the prompt as typed, and an oracle prompt that spells out a
    layout.
    """
    from ...evaluation.rewriters import check_rows, compare_rewriters
    from ...evaluation.shapeworld import select_tasks
    from ...factory import (
        open_renderer,
        open_reward,
        open_rewriter,
        parse_reward,
        parse_rewriter,
        renderer_settings,
    )
    from .. import results

    tasks, methods = select_tasks(task or []), parse_rows(rows)
    check_rows(methods, baseline)
    drawing = renderer_settings(renderer, steps, **drawing_options)
    makers = {one: partial(open_rewriter, parse_rewriter(one)) for row in methods.values() for one in row}
    measuring = open_reward(parse_reward(judge))
    with results.claimed("evaluate rewriters", out) as folder:
        with results.progress_bars(as_json, folder) as progress:
            result = compare_rewriters(
                methods=methods,
                rewriters=makers,
                renderer=open_renderer(drawing),
                judge=measuring,
                folder=folder,
                per_task=per_task,
                seeds=seeds,
                seed=seed,
                tasks=tasks,
                baseline=baseline,
                progress=progress,
            )
        results.finish(result, folder, as_json)


def parse_rows(words: Sequence[str]) -> dict[str, list[str]]:
    """["NAME=REWRITER,REWRITER", …] -> {NAME: [REWRITER, …]}. Raises BadInput."""
    rows: dict[str, list[str]] = {}
    for word in words:
        name, _, given = (part.strip() for part in word.partition("="))
        names = [one.strip() for one in given.split(",")]
        if not (name and all(names)):
            raise BadInput(
                f"{word!r}: expected NAME=REWRITER, or NAME=REWRITER,REWRITER,… for several training "
                "seeds; a rewriter is a folder, or a name that --rewriter of `reprise render` knows"
            )
        if name in rows:
            raise BadInput(f"row {name!r} is given twice; name each row once, with all its rewriters")
        rows[name] = names
    return rows
