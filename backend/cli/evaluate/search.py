"""`reprise evaluate search`: renderers, judges and searches compared on ShapeWorld's held-out prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...core.errors import BadInput
from .. import checks, options, settings
from ..renderer_options import renderer_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...core.interfaces import Renderer
    from ...evaluation.tables import TableRow
    from ...storage.cache import Cache


@renderer_options
def search(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE.yaml",
            show_default=False,
            help="Rows and their settings, such as `PARM: {lora: [A, B], best_of: 8, prune: halving}`; a "
            "list has a value for each training seed.",
        ),
    ] = None,
    show_settings: options.ShowSettings = False,
    task: options.Tasks = None,
    per_task: options.PerTask = 66,
    seeds: options.Repetitions = 4,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="the first row", help="The row that gains are over."),
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
    """Compare the rows of a file: each a rewriter, a LoRA of the renderer, a judge and a search."""
    from ...evaluation.shapeworld import select_tasks
    from ...evaluation.tables import RoleLoaders, TableRow, evaluate_rows, read_rows
    from ...factory import (
        open_renderer,
        open_reward,
        open_rewriter,
        parse_reward,
        renderer_settings,
        reward_mark,
    )
    from .. import results

    if show_settings:
        return settings.show(TableRow, "a row of evaluate search", as_json)
    if file is None:
        raise BadInput("expected reprise evaluate search FILE.yaml; --settings lists what a row may say")
    tasks, rows = select_tasks(task or []), read_rows(file)
    _check(rows.values(), renderer, steps, drawing_options)
    measuring = open_reward(parse_reward(judge))

    def load_renderer(lora: str | None, cache: Cache) -> Renderer:
        return open_renderer(
            renderer_settings(renderer, steps, **_with_lora(drawing_options, lora)), cache=cache
        )

    loaders = RoleLoaders(load_renderer, open_rewriter, open_reward, reward_mark)
    with results.claimed("evaluate search", out) as folder:
        with results.progress_bars(as_json, folder) as progress:
            result = evaluate_rows(
                rows=rows,
                loaders=loaders,
                metric=measuring,
                folder=folder,
                per_task=per_task,
                seeds=seeds,
                seed=seed,
                tasks=tasks,
                baseline=baseline,
                progress=progress,
            )
        results.finish(result, folder, as_json)


def _check(rows: Iterable[TableRow], renderer: str, steps: int | None, drawing: dict[str, Any]) -> None:
    """Raises BadInput and its kin for a name that does not exist, before the first picture is drawn."""
    from ...factory import parse_reward, parse_rewriter, renderer_settings

    for row in rows:
        checks.choose_prune(row.prune, renderer)
        for one in row.trainings():
            renderer_settings(renderer, steps, **_with_lora(drawing, one.lora))
            for rewriter in filter(None, (one.rewriter, one.corrector)):
                parse_rewriter(rewriter)
            for name in filter(None, (one.judge, one.previews)):
                parse_reward(name)


def _with_lora(drawing: dict[str, Any], lora: str | None) -> dict[str, Any]:
    """The options with a row's LoRA, which comes after those of all rows."""
    return drawing if lora is None else {**drawing, "lora": [*drawing.get("lora", ()), lora]}
