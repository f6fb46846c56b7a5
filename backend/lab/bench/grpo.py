"""The time of a GRPO step, ours beside a loop built like RePrompt's script, and how it is spent.

Each loop is its own process (`inside/grpo.py`); they take turns, one optimiser step each, with the same
rewriter, renderer, judges and prompts. The other loop (`reprompt_loop`) draws with the renderer's default
number of steps, as its script does; ours with fewer, which is enough to compare a group with itself. That is
a choice of settings, not speed, so the other loop also takes every step with our number.

Our loop replaces groups without signal by other prompts, and so draws more in a step. So there are three
measures, all of the wall time of whole steps:
- seconds per optimiser step, whatever was learned in it;
- pictures per second: pictures drawn; one from the cache, or shared by two answers, counts once;
- seconds per group with signal: groups of one prompt's rewrites whose scores differ by more than `std_floor`.
  In our loop the rewrites make the difference, as all share their seeds. In the other loop each picture has
  its own noise, and luck counts as signal.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .parm import ratio_interval
from .process import Process

SCRIPT = Path(__file__).parent / "inside" / "grpo.py"
GOAL = 4.0  # our speed over the other loop's
PHASES = {
    "write": "writing",
    "render": "drawing",
    "score": "judging",
    "update": "update",
    "record": "records, logs",
}
COUNTS = {
    "processor": "processor seconds",
    "answers": "answers",
    "unreadable": "answers that cannot be read",
    "pictures": "pictures drawn",
    "reused": "pictures there already",
    "rows": "denoiser rows",
    "groups": "groups",
    "signal": "groups with signal",
}
OWN, EQUAL = "each at its own steps", "at equal steps"
Step = dict[str, Any]


def bench(
    settings: Mapping[str, Any], *, pairs: int = 5, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """The result (design.md 5) of `pairs` optimiser steps of our loop, and of the other loop at each number
    of renderer steps, after a first step that is not counted. `settings` are a GrpoConfig as JSON.

    A ratio says how many times as fast our loop is, with its 95 % interval over the steps. Our evaluations
    are left out; our records and held-out judges count, although the other loop has none. Raises
    RepriseError if a loop fails.
    """
    settings = {
        **settings,
        "max_steps": pairs + 1,
        "init": "weights",
        "iterations": 1,
        "eval_prompts": None,
        "paraphrases": None,
    }
    with tempfile.TemporaryDirectory(prefix="reprise-bench-") as folder, ExitStack() as running:
        kinds = ("ours", "peer")
        if progress:
            progress("warm-up", 0, pairs)
        commands = {kind: [sys.executable, SCRIPT, kind, folder, json.dumps(settings)] for kind in kinds}
        sides = {
            kind: running.enter_context(Process(kind, words, Path(folder)))
            for kind, words in commands.items()
        }
        ready = {kind: side.read_answer() for kind, side in sides.items()}
        steps = {OWN: ready["peer"]["steps"], EQUAL: ready["ours"]["steps"]}
        if steps[OWN] == steps[EQUAL]:
            del steps[OWN]
        found: dict[str, list[Step]] = {name: [] for name in ("ours", "floor", *steps)}
        for turn in range(pairs):
            order = ["ours", *steps]
            for name in reversed(order) if turn % 2 else order:
                if name == "ours":
                    found["ours"].append(sides["ours"].ask({"do": "step"}))
                    found["floor"].append(sides["ours"].ask({"do": "floor"}))
                else:
                    found[name].append(sides["peer"].ask({"do": "step", "steps": steps[name]}))
            if progress:
                progress("steps", turn + 1, pairs)
    kept = (
        "model",
        "prompts",
        "renderer",
        "rewards",
        "prompts_per_step",
        "rewrites",
        "max_new_tokens",
        "batch_size",
        "resample",
        "device",
        "seed",
    )
    result = result_of(found, ours=ready["ours"]["steps"], steps=steps)
    result["settings"] = {name: settings[name] for name in kept}
    result["settings"] |= {"pairs": pairs, "goal": GOAL, "sides": ready}
    return result


def result_of(found: Mapping[str, Sequence[Step]], *, ours: int, steps: Mapping[str, int]) -> dict[str, Any]:
    """The result (design.md 5). `found` has the steps of "ours", of our "floor" and of the other loop.

    The other loop's keys are those of `steps`, whose values are its renderer steps; `ours` is our number.
    """
    rows = []
    mine = found["ours"]
    for kind, count in steps.items():
        title = f"{kind} ({ours} and {count})" if count != ours else f"{kind} ({ours})"
        theirs = found[kind]
        for name, unit, turned in (
            ("seconds per optimiser step", None, False),
            ("pictures per second", "pictures", True),
            ("seconds per group with signal", "signal", False),
        ):
            times = speedup(mine, theirs, unit)
            if times is None:
                continue  # there was no such unit
            rates = {"ours": _rate(mine, unit), "other": _rate(theirs, unit)}
            cost = {key: round(1 / rate if turned else rate, 4) for key, rate in rates.items()}
            rows.append({"name": f"{name}, {title}", "overall": times, "tasks": {}, "cost": cost})
    floor = [sum(step.values()) for step in found["floor"]]
    rows.append(
        {
            "name": "share of our step that the networks alone take",
            "tasks": {},
            "overall": ratio_interval(floor, [step["seconds"] for step in mine]),
            "cost": {"ours": round(sum(floor) / len(floor), 4)},
        }
    )
    return {"name": "grpo", "rows": rows, "tables": [_phase_table(found, steps), _count_table(found, steps)]}


def speedup(ours: Sequence[Step], theirs: Sequence[Step], unit: str | None) -> list[float] | None:
    """Their seconds over ours, per step or per `unit` (a count of the steps): [value, low, high].

    Bootstrapped over pairs of steps. None if one side has no such unit.
    """
    import numpy as np

    a, b = (
        np.asarray([(step["seconds"], step[unit] if unit else 1) for step in side], float)
        for side in (ours, theirs)
    )
    if not a[:, 1].sum() or not b[:, 1].sum():
        return None
    chosen = np.random.default_rng(0).integers(0, len(a), (4000, len(a)))
    drawn = np.stack([a[chosen].sum(1), b[chosen].sum(1)])  # (2, 4000, 2)
    drawn = drawn[:, (drawn[..., 1] > 0).all(0)]
    draws = (drawn[1, :, 0] / drawn[1, :, 1]) / (drawn[0, :, 0] / drawn[0, :, 1])
    low, high = np.percentile(draws, (2.5, 97.5))
    return [round(float(v), 4) for v in (_rate(theirs, unit) / _rate(ours, unit), low, high)]


def _rate(side: Sequence[Step], unit: str | None) -> float:
    """Seconds per step, or per `unit`; infinite without any."""
    units = sum(step[unit] if unit else 1 for step in side)
    return sum(step["seconds"] for step in side) / units if units else float("inf")


def _phase_table(found: Mapping[str, Sequence[Step]], steps: Mapping[str, int]) -> dict[str, Any]:
    sides = {
        "ours": [{**step["phases"], "all": step["seconds"]} for step in found["ours"]],
        "floor": [{**step, "all": sum(step.values())} for step in found["floor"]],
    }
    sides |= {
        f"other, {count} steps": [{**step["phases"], "all": step["seconds"]} for step in found[kind]]
        for kind, count in steps.items()
    }
    rows = []
    for key, name in {**PHASES, "all": "all"}.items():
        mean = {side: _mean(values, key) for side, values in sides.items()}
        share = mean["floor"] / mean["ours"] if mean["floor"] is not None and mean["ours"] else None
        rows.append([name, mean["ours"], mean["floor"], _round(share), *[mean[s] for s in [*sides][2:]]])
    columns = ["", "ours", "its floor", "share", *[*sides][2:]]
    return {"title": "seconds of a step, mean", "columns": columns, "rows": rows}


def _count_table(found: Mapping[str, Sequence[Step]], steps: Mapping[str, int]) -> dict[str, Any]:
    sides = {"ours": found["ours"], **{f"other, {count} steps": found[kind] for kind, count in steps.items()}}
    rows = [[name, *(_mean(values, key) for values in sides.values())] for key, name in COUNTS.items()]
    return {"title": "what a step does, mean", "columns": ["", *sides], "rows": rows}


def _mean(values: Sequence[Mapping[str, float]], key: str) -> float | None:
    if key not in values[0]:
        return None
    return _round(sum(value[key] for value in values) / len(values))


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
