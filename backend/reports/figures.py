"""The page of an evaluation or benchmark: intervals drawn to one scale, tasks, gains, costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..storage.outputs import write_made
from .reliability import reliability_figures
from .templates import PAGE, template


def write_figures(out: Path, result: dict[str, Any]) -> Path:
    """Write the page of `result` (design.md 5, with versions) to the folder `out`; returns its path."""
    path = out / PAGE
    write_made(out, path, render_figures(result))
    return path


def render_figures(result: dict[str, Any]) -> str:
    rows = result["rows"]
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    costs = list(dict.fromkeys(name for row in rows for name in row_counts(row)))
    high = max([1.0, *(row["overall"][2] for row in rows)])
    return template("figures.html.jinja").render(
        name=result["name"],
        tasks=tasks,
        costs=costs,
        rows=[_row(row, tasks, costs, high) for row in rows],
        trained=any(row.get("trainings") for row in rows),
        gained=any(row.get("gain") for row in rows),
        kept=any(row.get("gain_kept") for row in rows),
        correlation=_correlation(result.get("rank_correlation") or {}),
        timing=result.get("timing") or {},
        sweep=[_swept(row) for row in result.get("sweep") or []],
        tables=text_tables(result),
        reliability=reliability_figures(result.get("reliability") or {}),
        settings=result["settings"],
        versions=result.get("versions", {}),
    )


def interval_text(value: list[float] | None, digits: int = 2, sign: str = "") -> str:
    """[mean, low, high] -> "0.62 [0.58, 0.66]"; "" for None. With `sign` "+" positive numbers get a sign."""
    if value is None:
        return ""
    mean, low, high = (f"{v:{sign}.{digits}f}" for v in value)
    return f"{mean} [{low}, {high}]"


def row_counts(row: dict[str, Any]) -> dict[str, float]:
    """A row's costs by name, and for rewriters the counts of their rewrites."""
    rewrites = row.get("rewrites") or {}
    return {**row["cost"], **{name: value for name, value in rewrites.items() if value is not None}}


def text_tables(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The result's further tables ({"title", "columns", "rows"}) with their numbers as text."""
    return [
        {**table, "rows": [[_cell(cell) for cell in row] for row in table["rows"]]}
        for table in result.get("tables") or []
    ]


def _cell(value: str | float | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:,g}"


def _row(row: dict[str, Any], tasks: list[str], costs: list[str], high: float) -> dict[str, Any]:
    gain, counts = row.get("gain"), row_counts(row)
    return {
        "name": row["name"],
        "judge": row.get("judge"),
        "overall": interval_text(row["overall"], 3),
        "bar": _bar(row["overall"], high),
        "tasks": [
            {
                "mean": f"{row['tasks'][t][0]:.2f}",
                "range": "{1:.2f}–{2:.2f}".format(*row["tasks"][t]),
                "percent": round(100 * min(1.0, max(0.0, row["tasks"][t][0]))),
            }
            if t in row["tasks"]
            else None
            for t in tasks
        ],
        "costs": [f"{counts[c]:,g}" if c in counts else "" for c in costs],
        "trainings": [round(100 * one["overall"] / high, 2) for one in row.get("trainings") or []],
        "gain": interval_text(gain["interval"], 3, "+") if gain else "",
        "over": gain["over"] if gain else "",
        "kept": interval_text(row.get("gain_kept"), 3),
    }


def _bar(value: list[float], high: float) -> dict[str, float]:
    """The mean, and the left end and width of its interval, in percent of the scale from 0 to `high`."""
    mean, low, up = (100 * min(1.0, max(0.0, v / high)) for v in value)
    return {"mean": round(mean, 2), "low": round(low, 2), "width": round(max(0.4, up - low), 2)}


def _correlation(by_step: dict[str, list[float]]) -> list[dict[str, Any]]:
    steps = sorted(by_step.items(), key=lambda item: int(item[0]))
    return [{"step": step, "text": interval_text(value), "bar": _bar(value, 1.0)} for step, value in steps]


def _swept(row: dict[str, Any]) -> dict[str, Any]:
    return {"cuts": row["cuts"], "share": f"{row['rows_share']:.3f}", "kept": interval_text(row["kept"], 3)}
