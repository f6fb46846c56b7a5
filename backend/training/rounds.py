"""Rounds of preference training: draw with what was learned, judge anew, pair, learn from that, and again.

Source: iterative DPO of PARM (arXiv 2501.13926), "regenerate with the DPO model, relabel, drop all-same
prompts, once more". Departs from it: each round goes on from the adapter or the rewriter of the round before
and has that policy for its reference, as pairs that a policy drew say how to change that policy (the paper
does not name its reference); scores are graded, so that best stands against worst and ties are those within
a margin; held-out prompts are drawn before the first round and after each.

The run folder: `rounds/N/`, a whole run of the trainer each (`metrics.jsonl`, `checkpoints/`, `final/`,
`report.html`) beside what was drawn for it (`rollouts.jsonl`), its pairs (`preferences/`) and what became of
its prompts (`mined.json`); and of all rounds together `metrics.jsonl`, whose steps are counted on,
`evaluations.jsonl`, `rollouts/pictures`, `report.html`, `best/`, the round that did best on the held-out
prompts, and `final/`, the last one. What is there says where a stopped run goes on.
"""

from __future__ import annotations

import gc
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.errors import BadInput, TrainingFailed, Unsupported
from ..core.interfaces import Renderer, Reward
from ..core.seeds import shuffled_indices
from ..core.types import Job
from ..factory import open_reward
from ..reports.training import write_report
from ..rewards.scales import to_unit_range
from ..storage.cache import Cache
from ..storage.files import read_lines, write_whole
from .common import distributed
from .common.data import MAX_LOST
from .common.offload import StageTimer, judge_modules, modules_mover, renderer_modules
from .common.pairs import TeachesNothing
from .common.run_folder import append_lines, write_folder
from .rollouts.evaluation import evaluation_prompts, is_better, selection_metric
from .rollouts.prompts import TrainingPrompt, read_prompts
from .rollouts.scoring import PictureScorer, PictureScores
from .rollouts.settings import RoundSettings

PICTURES = Path("rollouts") / "pictures"
ROUNDS, MINED, DRAWN = "rounds", "mined.json", "rollouts.jsonl"


class UncachedScorer(PictureScorer):
    """A studio that looks at everything anew. Of a call that was killed while it kept its pictures some are
    there, and the others would be drawn in a batch of another make-up, which decides the last bits."""

    def score(self, jobs: Sequence[Job], judge_prompts: Sequence[str]) -> list[PictureScores]:
        for job, judge_prompt in zip(jobs, judge_prompts, strict=True):
            self.cache.forget(self.key(job), self._scores_key(job, judge_prompt))
        return super().score(jobs, judge_prompts)


class Rounds(ABC):
    """One run; `run` goes through its rounds. What a round is made of is each trainer's own."""

    def __init__(
        self, settings: RoundSettings, run: Path, seed: int, device: str, log: Callable[[str], None]
    ):
        self.settings, self.folder, self.seed, self.log = settings, run, seed, log
        self.device = device  # "auto" or "cpu", of all that draws, judges and learns
        done = len(list(run.glob(f"{ROUNDS}/*/final")))
        if settings.count < done:
            raise BadInput(
                f"{run} has {done} rounds behind it, and rounds.count={settings.count} are fewer; "
                f"set {done} or more, an earlier round is in {run / ROUNDS}"
            )
        self.prompts = read_prompts(settings.prompts, "train", seed)
        self.sets = evaluation_prompts(self.prompts, settings.eval_prompts)
        self.rewards = {name: open_reward(name, device) for name in (*settings.rewards, *settings.held_out)}
        self.looking: dict[str, Reward] = {
            name: reward for name, reward in self.rewards.items() if reward.spec.reads == "images"
        }
        if not self.looking.keys() & settings.rewards.keys():
            raise BadInput("no reward of rounds looks at pictures; add one, such as image-reward: 1.0")
        self.watched, self.higher = selection_metric(settings.held_out, settings.rewards, self.looking)
        self.cache = Cache(run / PICTURES, int(settings.keep_gb * 2**30))

    # What a round is made of

    @abstractmethod
    def gather(self, number: int, newest: Path | None) -> dict[str, float]:
        """Draw and judge a round with the `final/` of the one before, and put its pairs into its store; how
        many "prompts", "pairs", "ties", "alone" (with nothing to be compared with) and "gone" (pairs whose
        pictures are gone) there were, and the mean "reward" of all that was drawn, 0..1."""

    @abstractmethod
    def learn(self, number: int, newest: Path | None) -> Path:
        """Train on a round's pairs, from the `final/` of the one before; the round's own. Raises
        TeachesNothing where the settings leave none of them."""

    @abstractmethod
    def evaluate(self, newest: Path | None) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """(figures, samples for the report) of the held-out prompts."""

    def export(self, newest: Path, folder: Path) -> None:
        """Put a round's `final/` into a folder of the whole run."""
        shutil.copytree(newest, folder, dirs_exist_ok=True)

    # How they follow each other

    def run(self) -> Path:
        newest: Path | None = None
        stop = self._look(0, newest)
        for number in range(1, self.settings.count + 1):
            if stop or not self._gathered(number, newest):
                break
            learned = self._learned(number, newest)
            if learned is None:
                break
            newest = learned
            stop = self._look(number, newest)
        assert newest is not None, "the first round raises where it has no pairs"
        final = self._put(newest, self.folder / "final")
        write_report(self.folder, finished=True)
        best = self.folder / "best"  # none where no round did better than what it began with
        self.log(f"saved {final}" + (f"; the best round's is {best}" if best.is_dir() else ""))
        return final

    def of(self, number: int) -> Path:
        """A round's folder."""
        return self.folder / ROUNDS / str(number)

    def asked(self, number: int) -> list[tuple[int, TrainingPrompt]]:
        """The prompts of a round, each with its place among those of all rounds."""
        each = self.settings.per_round or len(self.prompts)
        places = range((number - 1) * each, number * each)
        chosen = shuffled_indices(len(self.prompts), self.seed, places)
        return [(place, self.prompts[i]) for place, i in zip(places, chosen, strict=True)]

    def mixed(self, scores: Mapping[str, float]) -> float:
        """The rewards that count on one scale, 0..1 as far as they keep to their ranges; higher is better."""
        weights = {name: weight for name, weight in self.settings.rewards.items() if name in scores}
        total = sum(to_unit_range(self.rewards[name].spec, scores[name]) * w for name, w in weights.items())
        return total / sum(weights.values())

    @contextmanager
    def at_work(self, renderer: Renderer, writer: Any = None) -> Iterator[PictureScorer]:
        """A studio; afterwards the judges wait in main memory. The renderer and `writer`, the model of the
        rewriter, are the caller's to let go."""
        device = "cuda" if distributed.use_gpu(self.device) else "cpu"
        judges = modules_mover(lambda: judge_modules(self.looking.values()))
        drawing = modules_mover(lambda: renderer_modules(renderer))
        turns = {
            "write": modules_mover(lambda: [writer] if writer is not None else []),
            "render": drawing,
            "score": judges,
        }
        timer = StageTimer(device, turns if device != "cpu" and self.settings.offload else None)
        if device != "cpu" and not timer.movers:
            judges(device)
        settings = self.settings.renderer
        try:
            yield UncachedScorer(renderer, self.looking, self.cache, timer, settings.batch, settings.external)
        finally:
            if device != "cpu":
                judges("cpu")

    def journal(self, number: int, each: int) -> list[dict[str, Any]]:
        """What a stopped run has on record of a round, `each` lines at a time; of what was being recorded
        when it was killed nothing is left."""
        path, count = self.of(number) / DRAWN, len(self.asked(number))
        rows = read_lines(path)
        if len(rows) < count:
            rows = rows[: len(rows) // each * each]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def record(self, number: int, rows: Sequence[Mapping[str, Any]], anew: bool = False) -> None:
        """Add lines to a round's record, or write them in its place."""
        path = self.of(number) / DRAWN
        if anew:
            write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
        else:
            append_lines(path, [json.dumps(row) for row in rows])

    def _gathered(self, number: int, newest: Path | None) -> bool:
        """Whether a round has pairs. Raises BadInput where the first has none, or pictures are gone."""
        path = self.of(number) / MINED
        if path.is_file():
            counts = json.loads(path.read_text(encoding="utf-8"))
        else:
            counts = self.gather(number, newest)
            free_memory()
            said = self._without(number, counts)
            if counts["gone"] > MAX_LOST * (counts["gone"] + counts["pairs"]):
                raise BadInput(f"{said}: what is drawn at once takes more than keep_gb; --resume with more")
            if not counts["pairs"] and newest is None:
                raise BadInput(f"{said}; begin another run, with a lower margin or more pictures a prompt")
            counts = {**counts, "stopped": None if counts["pairs"] else said}
            write_whole(path, json.dumps(counts) + "\n")
        if not counts["stopped"]:
            self.log(
                f"round {number}: {counts['pairs']} pairs of {counts['prompts']} prompts, "
                f"{counts['ties']} ties left out"
            )
            return True
        self.log(f"stopped: {counts['stopped']}")
        return False

    def _without(self, number: int, counts: Mapping[str, float]) -> str:
        alone = counts.get("alone", 0)  # rounds of earlier versions counted them as ties
        return (
            f"round {number} has {counts['pairs']} pairs of {counts['prompts']} prompts: "
            f"{counts['ties']} were ties, "
            + (f"{alone} had nothing to be compared with, " if alone else "")
            + f"and the pictures of {counts['gone']} are gone"
        )

    def _learned(self, number: int, newest: Path | None) -> Path | None:
        """A round's `final/`; None where its pairs teach nothing, which the first round raises."""
        final = self.of(number) / "final"
        if not final.is_dir():
            try:
                self.learn(number, newest)
            except TeachesNothing as error:
                if newest is None:
                    raise
                path, said = self.of(number) / MINED, f"round {number} teaches nothing: {error}"
                counts = json.loads(path.read_text(encoding="utf-8"))
                write_whole(path, json.dumps({**counts, "stopped": said}) + "\n")
                self.log(f"stopped: {said}")
                return None
            except TrainingFailed as error:  # what goes on is the whole run
                raise TrainingFailed(str(error).replace(str(self.of(number)), str(self.folder))) from error
            free_memory()
        before, lines = 0, []
        for one in range(1, number + 1):
            rows = read_lines(self.of(one) / "metrics.jsonl")
            lines += [json.dumps({**row, "step": before + row["step"], "round": one}) for row in rows]
            before += rows[-1]["step"] if rows else 0
        write_whole(self.folder / "metrics.jsonl", "".join(line + "\n" for line in lines))
        return final

    def _look(self, number: int, newest: Path | None) -> bool:
        """Evaluate after a round, keep the best; whether there should be no more rounds."""
        if not self.sets:
            write_report(self.folder)
            return False
        path = self.folder / "evaluations.jsonl"
        rows = read_lines(path)
        if all(row["round"] != number for row in rows):
            figures, samples = self.evaluate(newest)
            free_memory()
            steps = read_lines(self.folder / "metrics.jsonl")
            row = {"step": steps[-1]["step"] if steps else 0, "round": number, **figures, "samples": samples}
            rows = [*rows, row]
            # Written whole: a line that was being written when the run was killed is none.
            write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
            main = {key: value for key, value in figures.items() if not key.endswith("/words")}
            self.log(f"evaluation after round {number}: " + " ".join(f"{k} {v:.3f}" for k, v in main.items()))
        rows = [row for row in rows if row["round"] <= number]
        best = rows[0]
        for row in rows[1:]:
            best = row if is_better(row[self.watched], best[self.watched], self.higher) else best
        if best["round"] == number and newest is not None:
            self._put(newest, self.folder / "best")
        write_report(self.folder)
        stop = 0 < self.settings.patience <= number - best["round"]
        if stop:
            self.log(
                f"stopped after round {number}: {self.settings.patience} rounds brought no better "
                f"{self.watched} than round {best['round']}"
            )
        return stop

    def _put(self, newest: Path, folder: Path) -> Path:
        with write_folder(folder) as part:
            self.export(newest, part)
        return folder


def refuse_text(rewards: Mapping[str, Any]) -> None:
    """Raises Unsupported for rewards that read rewrites, where there are none."""
    for name, reward in rewards.items():
        if reward.spec.reads != "images":
            raise Unsupported(f"reward {name!r} reads rewrites, and a renderer writes none; leave it out")


def free_memory() -> None:
    """Give back the memory of models that are in use no more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
