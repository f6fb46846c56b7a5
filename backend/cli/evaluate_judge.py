"""`reprise evaluate judge`: how right judges are, against labelled pictures and previews."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import BadInput
from ..factory import VLM, make_reward, parse_weights, reward_mark

if TYPE_CHECKING:
    from ..evaluation.judges import Answerer

SPLIT = "test"  # prompts that no judge was trained on, nor its calibration fitted to


def evaluate_judges(
    names: Sequence[str], data: Path | None, out: Path | None, seed: int, as_json: bool
) -> None:
    """Raises BadInput for names or data that cannot be, before anything is loaded."""
    from ..evaluation.judges import JudgeCase, evaluate_judges
    from ..rewards.vlm.judge import MODES
    from ..storage.files import prepare_folder
    from ..training.judge.data import YES_OR_NO, of_split, present, prompt_mark, read_examples
    from . import results, terminal

    if not names or data is None:
        raise BadInput(
            "expected reprise evaluate judge JUDGE… --data FILE; a judge is vlm:FOLDER or any "
            "reward, and `reprise judge-data` makes the file"
        )
    if len(set(names)) < len(names):
        raise BadInput("a judge is named twice; name each once")
    parse_weights(list(names))
    for name in names:
        if name.startswith(VLM) and name.rpartition("#")[2] in MODES:
            raise BadInput(
                f"{name} names one question, and a judge is asked all; leave off #{name.rpartition('#')[2]}"
            )
    examples = of_split(read_examples(data), SPLIT, (*YES_OR_NO, "critique"))
    if not any(one.line.question in YES_OR_NO for one in examples):
        raise BadInput(
            f"{data} has no questions of yes or no in the split {SPLIT!r}; make it with reprise "
            "judge-data --test-share 1, of prompts that no judge was trained on"
        )
    marks = {name: reward_mark(name) for name in names}
    taught = set().union(*(_taught(name) for name in names))
    unseen = [one for one in examples if prompt_mark(one.line.prompt) not in taught]
    if len(unseen) < len(examples):
        told = (
            f"{len(examples) - len(unseen)} of {len(examples)} questions are about prompts that one of "
            "these judges was trained on, or about others' combinations"
        )
        if not unseen:
            raise BadInput(f"{told}; make others with reprise judge-data --held-out, or of other prompts")
        terminal.note(f"{told}; they are left out")
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
    out = prepare_folder(out or Path("out") / "evaluate-judge")
    with results.progress_bars(as_json, out) as tell:
        result = evaluate_judges(makers, cases, marks=marks, kept=out / "partial.jsonl", seed=seed, tell=tell)
    result["settings"]["data"] = str(data)
    results.finish(result, out, as_json)


def _make(name: str) -> Answerer:
    from ..evaluation.judges import make_answerer

    return make_answerer(make_reward(name))


def _taught(name: str) -> frozenset[str]:
    """Marks of the prompts that a judge was trained on, as far as its folder says."""
    from ..rewards.vlm.judge import find_folder, parse_source, read_tuned

    where, _ = parse_source(name.removeprefix(VLM)) if name.startswith(VLM) else ("@http", None)
    return frozenset() if "@http" in where else read_tuned(find_folder(where)).prompts
