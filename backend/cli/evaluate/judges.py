"""`reprise evaluate judges`: how right judges are about labelled pictures and previews."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...core.errors import BadInput
from ...factory import open_reward, parse_reward, reward_mark
from .. import options

if TYPE_CHECKING:
    from ...evaluation.judges import Answerer

SPLIT = "test"  # prompts that no judge was trained on, and no calibration was fitted to


def judges(
    names: Annotated[
        list[str],
        typer.Argument(metavar="JUDGE…", show_default=False, help="vlm:FOLDER, or any other reward."),
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Questions and answers, as `reprise data judge` makes them; its split test is asked.",
        ),
    ],
    seed: options.Seed = 0,
    out: options.ResultOut = None,
    as_json: options.Json = False,
) -> None:
    """Measure how right judges are about labelled pictures and previews."""
    from ...evaluation.judges import JudgeCase, evaluate_judges
    from ...training.judge.data import YES_OR_NO, of_split, present, prompt_mark, read_examples
    from .. import results, terminal

    _check(names)
    examples = of_split(read_examples(data), SPLIT, (*YES_OR_NO, "critique"))
    if not any(one.line.question in YES_OR_NO for one in examples):
        raise BadInput(
            f"{data} has no questions of yes or no in the split {SPLIT!r}; make it with `reprise "
            "data judge --test-share 1`, of prompts that no judge was trained on"
        )
    fingerprints = {name: reward_mark(name) for name in names}
    taught = set().union(*(_taught(name) for name in names))
    unseen = [one for one in examples if prompt_mark(one.line.prompt) not in taught]
    if len(unseen) < len(examples):
        seen = (
            f"{len(examples) - len(unseen)} of {len(examples)} questions are about prompts that one of "
            "these judges was trained on, or about combinations of their words"
        )
        if not unseen:
            raise BadInput(f"{seen}; make others with `reprise data judge --held-out`, or of other prompts")
        terminal.note(f"{seen}; they are left out")
        examples = unseen
    cases = [
        JudgeCase(
            one.line.question,
            one.line.prompt,
            one.picture,
            bool(one.line.label),
            one.line.step or 0,
            one.line.text,
        )
        for one in present(examples, terminal.note)
    ]
    makers: dict[str, Callable[[], Answerer]] = {name: partial(_make, name) for name in names}
    with results.claimed("evaluate judges", out) as folder:
        with results.progress_bars(as_json, folder) as progress:
            result = evaluate_judges(
                makers,
                cases,
                fingerprints=fingerprints,
                journal=folder / "partial.jsonl",
                seed=seed,
                progress=progress,
            )
        result["settings"]["data"] = str(data)
        results.finish(result, folder, as_json)


def _check(names: Sequence[str]) -> None:
    """Raises BadInput for names that no judge can have, before anything is loaded."""
    from ...rewards.vlm.judge import MODES

    if len(set(names)) < len(names):
        raise BadInput("a judge is named twice; name each once")
    for name in names:
        question = name.rpartition("#")[2]
        if parse_reward(name).kind == "vlm" and question in MODES:
            raise BadInput(
                f"{name} names one question, and a judge is asked all of them; leave off #{question}"
            )


def _make(name: str) -> Answerer:
    from ...evaluation.judges import make_answerer

    return make_answerer(open_reward(name))


def _taught(name: str) -> frozenset[str]:
    """Marks of the prompts that a judge was trained on, as far as its folder says."""
    from ...rewards.vlm.judge import find_folder, read_tuned

    judge = parse_reward(name)
    of_folder = judge.kind == "vlm" and not judge.url
    return read_tuned(find_folder(judge.model)).prompts if of_folder else frozenset()
