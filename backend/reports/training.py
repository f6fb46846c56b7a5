"""`report.html` of a training run, rewritten while it runs: curves, fixed prompts over time, the last group.

Made from the run's files only: `metrics.jsonl`, `evaluations.jsonl`, `rollouts/`, `config.yaml`. Until the
run is finished the page reloads itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import BadInput, first_line
from ..storage.files import read_json, read_lines, read_text, write_whole
from .added_words import mark_added_words
from .build import number_text
from .pictures import inline_picture
from .reliability import reliability_figures
from .templates import template

REPORT = "report.html"
PAUSE = 10.0  # seconds between two versions; an open page is loaded again every 20
PICTURES = Path("rollouts") / "pictures"
ROLLOUTS = Path("rollouts") / "rollouts.jsonl"
SIDE = 192  # pixels of a sample
TIMES = 5  # evaluations shown of a fixed prompt
TAIL = 2**18  # bytes at the end of the rollouts that are searched for the last group
WIDTH, HEIGHT, EDGE = 360, 120, 6  # of a curve's figure, and its margin
PIECES = 120  # of a long curve
Row = Mapping[str, Any]
Points = Sequence[tuple[float, float]]
# Title -> keys of metrics.jsonl that are drawn in one figure; None: all rewards.
CURVES: dict[str, Sequence[str] | None] = {
    "Reward, training": ("reward",),
    "Gain over the prompt as typed, training": ("gain",),
    "Each reward, training": None,
    "Loss, training": ("loss",),
    "Groups without signal": ("zero_variance",),
    "Answers that cannot be parsed": ("unparsable",),
    "Refinements cut off, and unchanged": ("cut_off", "unchanged"),
    "Variance of the returns explained by the value head": ("explained",),
    "Words of a rewrite": ("words",),
    "KL from the initial weights, per token": ("kl",),
    "Entropy, per token": ("entropy",),
    "Largest |ratio - 1|": ("ratio_off",),
    "Ratio, mean": ("ratio",),
    "Ratios clipped": ("clipped",),
    "Value loss": ("value_loss",),
    "Distance from the initial pivots": ("drift",),
    "Pairs ordered right, training": ("accuracy",),
    "Denoising error minus the reference's": ("chosen", "rejected"),
    "Gradient norm": ("grad_norm",),
    "Seconds a step": ("seconds/write", "seconds/render", "seconds/score", "seconds/wait", "seconds/update"),
}


def update_report(run: Path) -> None:
    """As `write_report`, for each step of a run: a page that was written just now is left as it is."""
    with suppress(FileNotFoundError):
        if abs(time.time() - (run / REPORT).stat().st_mtime) < PAUSE:
            return
    write_report(run)


def write_report(run: Path, finished: bool = False) -> Path:
    """Write the page of the run in the folder `run`; returns its path."""
    write_whole(run / REPORT, render_report(run, finished))
    return run / REPORT


def render_report(run: Path, finished: bool = False) -> str:
    """The page. Raises BadInput for a damaged file, with the line if it has lines."""
    steps = read_lines(run / "metrics.jsonl", needs={"step": int})
    evaluations = read_lines(run / "evaluations.jsonl", needs={"step": int, "samples": list})
    settings = _read_settings(run / "config.yaml")
    try:
        return _render(run, finished, steps, evaluations, settings)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BadInput(
            f"the records of {run} do not fit together ({type(error).__name__}: {first_line(error)}); bring "
            f"back metrics.jsonl, evaluations.jsonl, {ROLLOUTS.as_posix()} and config.yaml as they were"
        ) from error


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(read_text(path, "config", "is"))
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or "max_steps" not in found:
        raise BadInput(f"{path} is damaged or cut off: expected the settings of a training; bring it back")
    return found


def _render(
    run: Path, finished: bool, steps: Sequence[Row], evaluations: Sequence[Row], settings: Row
) -> str:
    evaluated = {f"{name}, evaluated": keys for name, keys in _evaluated(evaluations).items()}
    curves = [_curve(title, evaluations, keys) for title, keys in evaluated.items()]
    curves += [_curve(title, steps, keys or _rewards(steps)) for title, keys in CURVES.items()]
    rows = [*steps, *evaluations]
    return template("training.html.jinja").render(
        name=run.name,
        finished=finished,
        settings=settings,
        rounds=_rounds(run),
        step=max([row["step"] for row in rows], default=0),
        steps=_in_all(settings, rows),
        facts=_facts(steps, evaluations),
        curves=[curve for curve in curves if curve is not None],
        prompts=_through_time(run, evaluations),
        group=_last_group(run),
        width=WIDTH,
        height=HEIGHT,
        reliability=reliability_figures(evaluations[-1].get("reliability") or {}) if evaluations else [],
        by_step=_by_step(evaluations),
    )


def _in_all(settings: Row, rows: Sequence[Row]) -> int:
    """The planned number of steps, of all rounds together; from `rows` if `max_steps` is not set."""
    rounds = (settings.get("rounds") or {}).get("count", 1)
    if settings["max_steps"]:
        return settings["max_steps"] * rounds
    step = max((row.get("of", row["step"]) for row in rows), default=0)
    return max(1, step * rounds // max([row.get("round", 1) for row in rows], default=1) or 1)


def _rounds(run: Path) -> list[dict[str, Any]]:
    """The counts of each round (`mined.json`), if the training has rounds."""
    found = []
    for path in sorted(run.glob("rounds/*/mined.json"), key=lambda path: int(path.parent.name)):
        row = read_json(path, "delete it, and --resume pairs the round again", {"reward": float})
        found.append({**row, "round": path.parent.name, "reward": number_text(row["reward"])})
    return found


def _rewards(rows: Sequence[Row]) -> list[str]:
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if key.startswith("reward/") and not key.endswith("/std")]


def _evaluated(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Reward -> its keys in evaluations, one for each prompt set."""
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in rows for key in row if "/" in key):
        group, name = key.split("/", 1)
        if name not in ("unparsable", "words"):
            found.setdefault(name, []).append(f"{group}/{name}")
    return found


def _facts(steps: Sequence[Row], evaluations: Sequence[Row]) -> list[dict[str, str]]:
    """The figures at the top of the page: first -> latest evaluation, seconds, pictures per second."""
    facts = []
    for name, keys in _evaluated(evaluations).items():
        for key in keys:
            values = [row[key] for row in evaluations if key in row]
            shown = list(dict.fromkeys([number_text(values[0]), number_text(values[-1])]))
            facts.append({"value": " → ".join(shown), "name": f"{name}, {key.split('/')[0]}"})
    if steps and "seconds" in steps[-1]:
        rate = steps[-1].get("pictures_per_second")
        facts.append({"value": f"{steps[-1]['seconds']:.0f} s", "name": "a step"})
        facts += [{"value": f"{rate:.1f}", "name": "pictures a second"}] if rate else []
    return facts


def _curve(title: str, rows: Sequence[Row], keys: Sequence[str]) -> dict[str, Any] | None:
    """The values of `keys` over the steps, as points of an SVG; None without values."""
    lines = {key: [(row["step"], row[key]) for row in rows if row.get(key) is not None] for key in keys}
    # A single point beside lines, such as the prompts as typed, would only compress their scale.
    longest = max(map(len, lines.values()), default=0)
    lines = {key: points for key, points in lines.items() if len(points) > min(1, longest - 1)}
    if not longest:
        return None
    xs, ys = zip(*(point for points in lines.values() for point in points))
    (left, right), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))
    across, up = max(right - left, 1), (high - low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        right_of, below = (x - left) / across, 1 - (y - low) / up
        return (round(EDGE + (WIDTH - 2 * EDGE) * right_of, 1), round(EDGE + (HEIGHT - 2 * EDGE) * below, 1))

    drawn = []
    for name, points in zip(_names(list(lines)), lines.values()):
        line, band = ([place(*point) for point in some] for some in smoothed(points, left, across))
        drawn.append(
            {
                "name": name,
                "points": " ".join(f"{x},{y}" for x, y in line),
                "band": " ".join(f"{x},{y}" for x, y in band),
                "end": line[-1],
                "last": f"{points[-1][1]:.3g}",
            }
        )
    return {
        "title": title,
        "lines": drawn,
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "left": left,
        "right": right,
    }


def smoothed(points: Points, left: float, across: float) -> tuple[Points, Points]:
    """A line (x, y) as it is shown, and the outline of the band that it stays in, empty for a short line.

    A long line would fill its figure. It is cut into `PIECES` of equal width; the line goes through their
    means, the band from the lowest to the highest value of each. Neither grows with the run.
    """
    if len(points) <= 2 * PIECES:
        return points, []
    pieces: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        pieces.setdefault(min(PIECES - 1, int((point[0] - left) * PIECES / across)), []).append(point)
    line, low, high = [], [], []
    for piece in pieces.values():
        xs, ys = zip(*piece)
        x = sum(xs) / len(xs)
        line.append((x, sum(ys) / len(ys)))
        low.append((x, min(ys)))
        high.append((x, max(ys)))
    return line, [*low, *reversed(high)]


def _names(keys: list[str]) -> list[str]:
    """Names of a figure's lines: the part of "set/reward" in which they differ."""
    parts = [key.split("/", 1) if "/" in key else ["", key] for key in keys]  # a reward's name may hold "/"
    alike = len({last for _, last in parts}) == 1 and all(first for first, _ in parts)
    return [first if alike else last for first, last in parts]


def _through_time(run: Path, evaluations: Sequence[Row]) -> list[dict[str, Any]]:
    """The fixed prompts, each with its pictures of `TIMES` evaluations spread over the run."""
    if not evaluations:
        return []
    last = len(evaluations) - 1
    chosen = sorted({round(i * last / (TIMES - 1)) for i in range(TIMES)})
    shown = []
    for number, sample in enumerate(evaluations[0]["samples"]):
        views = []
        for row in (evaluations[i] for i in chosen):
            one = row["samples"][number]
            views.append(
                {
                    "step": row["step"],
                    "picture": _picture(run, one["picture"]),
                    "fallback": one["fallback"],
                    "words": mark_added_words(one["prompt"], one["rewrite"]),
                    "reason": one["reason"],
                    "scores": {name: number_text(value) for name, value in one["scores"].items()},
                }
            )
        shown.append({"prompt": sample["prompt"], "views": views})
    return shown


def _by_step(evaluations: Sequence[Row]) -> dict[str, Any] | None:
    """For a judge: the last evaluation's accuracy at each denoising step; None if there is none."""
    found = evaluations[-1].get("by_step") if evaluations else None
    if not found:
        return None
    steps = sorted({int(step) for row in found.values() for step in row})
    rows = [
        (name, [f"{row[str(s)][0]:.3f} ({row[str(s)][1]})" if str(s) in row else "" for s in steps])
        for name, row in found.items()
    ]
    return {"steps": [f"step {step}" if step else "finished" for step in steps], "rows": rows}


def _last_group(run: Path) -> dict[str, Any] | None:
    """The last group with a learning signal, best advantage first; None if there is none."""
    path = run / ROLLOUTS
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        tail = file.read().decode("utf-8", "replace").split("\n")[1 if path.stat().st_size > TAIL else 0 : -1]
    rows = []
    for number, line in enumerate(tail, start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            number += path.read_bytes().count(b"\n") - len(tail)
            raise BadInput(
                f"{path}, line {number}: not JSON ({first_line(error)}); delete this line"
            ) from error
    with_signal = [row["position"] for row in rows if abs(row.get("advantage", 0)) > 0.1]
    if not with_signal:
        return None
    group = [row for row in rows if row["position"] == with_signal[-1]]
    group.sort(key=lambda row: -row.get("advantage", -10))
    return {
        "prompt": group[0]["prompt"],
        "step": group[0]["step"],
        "cards": [
            {
                "picture": _picture(run, next(iter(row["pictures"]), None)),
                "variant": row["variant"],
                "advantage": f"{row['advantage']:+.2f}" if "advantage" in row else "not trained on",
                "words": mark_added_words(row["prompt"], row.get("rewrite", "")),
                "unparsable": row.get("unparsable"),
                "scores": {name: number_text(value) for name, value in row["scores"].items()},
            }
            for row in group
        ],
    }


def _picture(run: Path, key: str | None) -> str | None:
    return inline_picture(run / PICTURES, f"{key[:2]}/{key}.png", SIDE) if key else None
