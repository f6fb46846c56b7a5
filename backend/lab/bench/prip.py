"""The time of PRIP's refinements and of a PPO step, measured in one run of one process (`inside/prip.py`).

Refinements: `PripRewriter` as it is used, beside the decoder's own `generate`, which gets the computed
embeddings of template, pivots and prompts in the same batches. "From prompts" counts all our work, the
encoder included; "from pivots" the work after pivots and prompts are embedded. Sampled texts differ in
length, so for them tokens are counted.

A step: how its time is spent, and its floor, the time of the networks alone on tensors of the same shapes.
Writing: the encoder, and one decoder pass for each token. Drawing: the denoiser's rows and the VAE decoder's
pictures. Update: a pass of policy and reference without gradients, and a forward and backward pass for each
epoch.
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
GOAL = 0.95  # our speed over that of the decoder's own `generate`
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
    """The result (design.md 5) of `pairs` rounds of refining `refined` prompts, ours and `generate` in turns,
    and of as many PPO steps; a first one of each is not counted.

    `settings` are a PpoConfig as JSON. Evaluations are left out. Raises RepriseError if the process fails.
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
    """The result (design.md 5). `speeds` has the rounds of five ways to refine, `steps` rows of metrics.

    `floors` are the networks' seconds in each step, by "write", "render" and "update".
    """
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
