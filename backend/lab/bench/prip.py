"""What PRIP's refinements and a PPO step cost, measured in one run by one process (`inside/prip.py`).

Refinements: those of `PripRewriter`, as in use, beside the decoder's own `generate`, which is given what ours
work out: the embeddings of template, pivots and prompts, in the same batches. "From prompts" counts all that
ours do, the encoder too; "from pivots" what is left once pivots and prompts are there. Drawn texts differ in
length, so there tokens are counted.

A step: where its time goes, and its floor, what the networks alone take on the same shapes: the encoder and
one pass of the decoder a token to write; the denoiser's rows and the decoder's pictures; a pass of policy and
reference without gradients and one forward and backward for each epoch.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .parm import ratio_interval
from .process import Process

SCRIPT = Path(__file__).parent / "inside" / "prip.py"
GOAL = 0.95  # of the decoder's own speed
PHASES = {
    "write": "writing",
    "render": "drawing",
    "score": "judging",
    "update": "update",
    "record": "records, logs",
}
COUNTS = {
    "tokens": "tokens of a refinement",
    "pictures": "pictures drawn",
    "pictures_reused": "pictures there already",
}


def bench(
    settings: Mapping[str, Any],
    *,
    pairs: int = 5,
    refined: int = 64,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """`pairs` rounds of `refined` prompts by ours and by `generate`, in turns, and as many PPO steps, after a
    first one of each that is not counted; `settings` are a PpoConfig's, as JSON. Evaluations are left out.

    Raises RepriseError where it breaks.
    """
    settings = {**settings, "max_steps": pairs + 1, "eval_prompts": None}
    with tempfile.TemporaryDirectory(prefix="reprise-bench-") as folder:
        command = [sys.executable, SCRIPT, folder, json.dumps(settings), str(refined)]
        with Process("prip", command, Path(folder)) as side:
            ready = side.read_answer()
            found: dict[str, list[dict[str, Any]]] = {"refine": [], "step": []}
            for what, answers in found.items():
                for turn in range(pairs + 1):
                    answers.append(side.ask({"do": what}))
                    if progress:
                        progress("refinements" if what == "refine" else "steps", turn, pairs)
    rounds, steps = found["refine"][1:], found["step"][1:]
    result = result_of(
        {way: [one[way] for one in rounds] for way in rounds[0]},
        [one["step"] for one in steps],
        [one["floor"] for one in steps],
    )
    result["settings"] = {"pairs": pairs, "goal": GOAL, "refined": refined, "side": ready, **settings}
    return result


def result_of(
    speeds: Mapping[str, Sequence[Mapping[str, float]]],
    steps: Sequence[Mapping[str, float]],
    floors: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """The bench's object (design.md 5). `speeds` has rounds of the five ways, `steps` rows of metrics."""
    rows = []
    for name, ours, theirs, unit in (
        ("refinements per second, from prompts", "ours", "generate", "rows"),
        ("refinements per second, from pivots", "ours, pivots", "generate", "rows"),
        ("tokens per second, drawn, from pivots", "ours, drawn", "generate, drawn", "tokens"),
    ):
        a, b = ([one["seconds"] / one[unit] for one in speeds[side]] for side in (ours, theirs))
        cost = {"ours": round(len(a) / sum(a), 2), "generate": round(len(b) / sum(b), 2)}
        rows.append({"name": name, "overall": ratio_interval(b, a), "tasks": {}, "cost": cost})
    whole = [step["seconds"] for step in steps]
    rows.append(
        {
            "name": "share of a step that the networks alone take",
            "tasks": {},
            "overall": ratio_interval([sum(floor.values()) for floor in floors], whole),
            "cost": {"ours": round(sum(whole) / len(whole), 4)},
        }
    )
    split = []
    for step in steps:
        spent = {name: step[f"seconds/{name}"] for name in PHASES if name != "record"}
        split.append({**spent, "record": step["seconds"] - sum(spent.values()), "all": step["seconds"]})
    found = [{**floor, "all": sum(floor.values())} for floor in floors]
    table = []
    for key, name in {**PHASES, "all": "all"}.items():
        mine, least = _mean(split, key), _mean(found, key)
        share = round(least / mine, 3) if mine and least is not None else None
        table.append([name, mine, least, share])
    tokens = [
        ["greedy", _per_row(speeds["ours, pivots"]), _per_row(speeds["generate"])],
        ["drawn", _per_row(speeds["ours, drawn"]), _per_row(speeds["generate, drawn"])],
    ]
    did = [[name, _mean(steps, key)] for key, name in COUNTS.items()]
    tables = [
        ("seconds of a step of ppo, mean", ["ours", "its floor", "share"], table),
        ("what a step of ppo does, mean", ["ours"], did),
        ("tokens of a refinement, mean", ["ours", "generate"], tokens),
    ]
    return {
        "name": "prip",
        "rows": rows,
        "tables": [
            {"title": title, "columns": ["", *columns], "rows": lines} for title, columns, lines in tables
        ],
    }


def _per_row(rounds: Sequence[Mapping[str, float]]) -> float:
    return round(sum(one["tokens"] for one in rounds) / sum(one["rows"] for one in rounds), 2)


def _mean(values: Sequence[Mapping[str, float]], key: str) -> float | None:
    if key not in values[0]:
        return None
    return round(sum(value[key] for value in values) / len(values), 3)
