"""Rounds of preference training: draw with the newest policy, score, pair, learn from the pairs, and again.

Source: iterative DPO of PARM (arXiv 2501.13926), "regenerate with the DPO model, relabel, drop all-same
prompts, once more". Departs from it: each round goes on from the adapter or the rewriter of the round before
and has that policy for its reference, because pairs that a policy drew say how to change that policy (the
paper does not name its reference); scores are graded, so that best stands against worst and ties are those
within a margin; held-out prompts are drawn before the first round and after each.

The run folder has `rounds/N/`, each a whole run of the trainer (`metrics.jsonl`, `checkpoints/`, `final/`,
`report.html`) with what was drawn for it (`rollouts.jsonl`), its pairs (`preferences/`) and their numbers
(`mined.json`). Of all rounds together it has `metrics.jsonl`, whose steps are counted through,
`evaluations.jsonl`, `rollouts/pictures`, `report.html`, `best/`, the round that did best on the held-out
prompts, and `final/`, the last round. A stopped run goes on from what is there.
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

from ..core.errors import BadInput, TrainingFailed
from ..core.interfaces import Renderer, Reward
from ..core.seeds import shuffled_indices
from ..core.types import Job
from ..factory import open_rewards
from ..reports.training import PICTURES, write_report
from ..rewards.scales import to_unit_range
from ..storage.cache import Cache
from ..storage.checksums import check_folder
from ..storage.files import read_json, read_lines, write_whole
from .common import distributed
from .common.data import MAX_LOST
from .common.offload import GpuOffload, OffloadRole, StageTimer, judge_modules, renderer_modules
from .common.pairs import TeachesNothing
from .common.run_folder import append_lines, write_folder
from .rollouts.evaluation import evaluation_prompts, is_better, selection_metric, shown_figures
from .rollouts.prompts import TrainingPrompt, read_prompts
from .rollouts.scoring import PictureScorer, PictureScores
from .rollouts.settings import RoundSettings

ROUNDS, MINED, DRAWN = "rounds", "mined.json", "rollouts.jsonl"
MINED_AGAIN = "delete it, and --resume pairs the round again"


class UncachedScorer(PictureScorer):
    """Draws and scores everything again. After a kill while pictures are being stored some of them are in the
    cache, and the others would be drawn in other batches, which decide the last bits."""

    def score(self, jobs: Sequence[Job], judge_prompts: Sequence[str]) -> list[PictureScores]:
        for job, judge_prompt in zip(jobs, judge_prompts, strict=True):
            self.cache.forget(self.key(job), self._scores_key(job, judge_prompt))
        return super().score(jobs, judge_prompts)


class Rounds(ABC):
    """One run; `run` goes through its rounds. A method fills in what a round consists of."""

    def __init__(
        self, settings: RoundSettings, run: Path, seed: int, device: str, log: Callable[[str], None]
    ):
        self.settings, self.folder, self.seed, self.log = settings, run, seed, log
        self.device = device  # "auto" or "cpu", for all that draws, scores and learns
        done = len(list(run.glob(f"{ROUNDS}/*/final")))
        if settings.count < done:
            raise BadInput(
                f"{run} has done {done} rounds, and rounds.count={settings.count} are fewer; "
                f"set {done} or more, an earlier round is in {run / ROUNDS}"
            )
        self.prompts = read_prompts(settings.prompts, "train", seed)
        self.sets = evaluation_prompts(self.prompts, settings.eval_prompts)
        self.rewards = open_rewards((*settings.rewards, *settings.held_out), device)
        self.picture_rewards: dict[str, Reward] = {
            name: reward for name, reward in self.rewards.items() if reward.spec.reads == "images"
        }
        self.metric, self.higher = selection_metric(settings.held_out, settings.rewards, self.picture_rewards)
        self.cache = Cache(run / PICTURES, int(settings.keep_gb * 2**30))

    # What a round is made of

    @abstractmethod
    def gather(self, number: int, newest: Path | None) -> dict[str, float]:
        """Draw and score a round with `newest`, the `final/` of the round before, and store its pairs.

        Returns the numbers of "prompts", "pairs", "ties", "alone" (prompts with nothing to compare) and
        "gone" (pairs whose pictures are gone), and the mean "reward" of all that was drawn, 0..1.
        """

    @abstractmethod
    def learn(self, number: int, newest: Path | None) -> Path:
        """Train on a round's pairs, from the `final/` of the round before, and return the round's own. Raises
        TeachesNothing where the settings leave no pair."""

    @abstractmethod
    def evaluate(self, newest: Path | None) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """(figures, samples for the report) of the held-out prompts."""

    def export(self, newest: Path, folder: Path) -> None:
        """Copy a round's `final/` into a folder of the whole run."""
        check_folder(newest)  # a copy gets checksums of its own
        shutil.copytree(newest, folder, dirs_exist_ok=True)

    # How they follow each other

    def run(self) -> Path:
        newest: Path | None = None
        stop = self._evaluate_round(0, newest)
        for number in range(1, self.settings.count + 1):
            if stop or not self._gather_pairs(number, newest):
                break
            learned = self._learn_round(number, newest)
            if learned is None:
                break
            newest = learned
            stop = self._evaluate_round(number, newest)
        assert newest is not None, "the first round raises where it has no pairs"
        final = self._write(newest, self.folder / "final")
        write_report(self.folder, finished=True)
        best = self.folder / "best"  # none where no round did better than what it began with
        self.log(f"saved {final}" + (f"; the best round's is {best}" if best.is_dir() else ""))
        return final

    def round_folder(self, number: int) -> Path:
        return self.folder / ROUNDS / str(number)

    def prompts_of(self, number: int) -> list[tuple[int, TrainingPrompt]]:
        """The prompts of a round, each with its place among those of all rounds."""
        each = self.settings.per_round or len(self.prompts)
        places = range((number - 1) * each, number * each)
        chosen = shuffled_indices(len(self.prompts), self.seed, places)
        return [(place, self.prompts[i]) for place, i in zip(places, chosen, strict=True)]

    def mixed_reward(self, scores: Mapping[str, float]) -> float:
        """Weighted mean of the rewards that count, each brought to 0..1 by its range. More is better."""
        weights = {name: weight for name, weight in self.settings.rewards.items() if name in scores}
        total = sum(to_unit_range(self.rewards[name].spec, scores[name]) * w for name, w in weights.items())
        return total / sum(weights.values())

    @contextmanager
    def open_scorer(self, renderer: Renderer, writer: Any = None) -> Iterator[PictureScorer]:
        """A scorer. Afterwards the judges wait in main memory; the caller deletes the renderer and `writer`,
        the rewriter's model."""
        device = "cuda" if distributed.use_gpu(self.device) else "cpu"
        judges = OffloadRole(lambda: judge_modules(self.picture_rewards.values()))
        offload = None
        if device != "cpu" and self.settings.offload:
            writing = OffloadRole(lambda: [writer] if writer is not None else [])
            drawing = OffloadRole(lambda: renderer_modules(renderer))
            offload = GpuOffload(device, {"write": writing, "render": drawing, "score": judges})
        elif device != "cpu":
            judges.move(device)
        batch, overlap = self.settings.renderer.batch, renderer.capabilities.elsewhere
        try:
            yield UncachedScorer(
                renderer, self.picture_rewards, self.cache, StageTimer(offload), batch, overlap
            )
        finally:
            if device != "cpu":
                judges.move("cpu")

    def recorded_rows(self, number: int, each: int) -> list[dict[str, Any]]:
        """The lines that a stopped run has recorded of a round, `each` at a time; those that were being
        written when it was killed are cut."""
        path, count = self.round_folder(number) / DRAWN, len(self.prompts_of(number))
        rows = read_lines(path, "delete this line and all after it, and --resume draws those again")
        if len(rows) < count:
            rows = rows[: len(rows) // each * each]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def record(self, number: int, rows: Sequence[Mapping[str, Any]], replace: bool = False) -> None:
        """Add lines to a round's record, or replace it."""
        path = self.round_folder(number) / DRAWN
        if replace:
            write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
        else:
            append_lines(path, [json.dumps(row) for row in rows])

    def _gather_pairs(self, number: int, newest: Path | None) -> bool:
        """Whether a round has pairs. Raises BadInput where the first has none, or pictures are gone."""
        path = self.round_folder(number) / MINED
        if path.is_file():
            counts = read_json(path, MINED_AGAIN, {"pairs": int, "prompts": int, "ties": int})
            counts.setdefault("stopped", None)
        else:
            counts = self.gather(number, newest)
            free_memory()
            missing = self._what_is_missing(number, counts)
            if counts["gone"] > MAX_LOST * (counts["gone"] + counts["pairs"]):
                raise BadInput(
                    f"{missing}: what is drawn at once takes more than keep_gb; --resume with more"
                )
            if not counts["pairs"] and newest is None:
                raise BadInput(f"{missing}; begin another run, with a lower margin or more pictures a prompt")
            counts = {**counts, "stopped": None if counts["pairs"] else missing}
            write_whole(path, json.dumps(counts) + "\n")
        if not counts["stopped"]:
            self.log(
                f"round {number}: {counts['pairs']} pairs of {counts['prompts']} prompts, "
                f"{counts['ties']} ties left out"
            )
            return True
        self.log(f"stopped: {counts['stopped']}")
        return False

    def _what_is_missing(self, number: int, counts: Mapping[str, float]) -> str:
        alone = counts.get("alone", 0)  # rounds of earlier versions counted them as ties
        return (
            f"round {number} has {counts['pairs']} pairs of {counts['prompts']} prompts: "
            f"{counts['ties']} were ties, "
            + (f"{alone} had nothing to be compared with, " if alone else "")
            + f"and the pictures of {counts['gone']} are gone"
        )

    def _learn_round(self, number: int, newest: Path | None) -> Path | None:
        """A round's `final/`; None where its pairs teach nothing, which the first round raises."""
        final = self.round_folder(number) / "final"
        if not final.is_dir():
            try:
                self.learn(number, newest)
            except TeachesNothing as error:
                if newest is None:
                    raise
                path, why = self.round_folder(number) / MINED, f"round {number} teaches nothing: {error}"
                counts = read_json(path, MINED_AGAIN)
                write_whole(path, json.dumps({**counts, "stopped": why}) + "\n")
                self.log(f"stopped: {why}")
                return None
            except TrainingFailed as error:  # what goes on is the whole run
                raise TrainingFailed(
                    str(error).replace(str(self.round_folder(number)), str(self.folder))
                ) from error
            free_memory()
        before, lines = 0, []
        for one in range(1, number + 1):
            rows = read_lines(self.round_folder(one) / "metrics.jsonl", needs={"step": int})
            lines += [json.dumps({**row, "step": before + row["step"], "round": one}) for row in rows]
            before += rows[-1]["step"] if rows else 0
        write_whole(self.folder / "metrics.jsonl", "".join(line + "\n" for line in lines))
        return final

    def _evaluate_round(self, number: int, newest: Path | None) -> bool:
        """Evaluate after a round, and copy the best; whether there should be no more rounds."""
        if not self.sets:
            write_report(self.folder)
            return False
        path = self.folder / "evaluations.jsonl"
        again = "delete this line, and --resume evaluates that round again"
        rows = read_lines(path, again, {"step": int, "round": int, "samples": list})
        if all(row["round"] != number for row in rows):
            figures, samples = self.evaluate(newest)
            free_memory()
            steps = read_lines(self.folder / "metrics.jsonl", needs={"step": int})
            row = {"step": steps[-1]["step"] if steps else 0, "round": number, **figures, "samples": samples}
            rows = [*rows, row]
            # Written whole, so that a kill leaves no half line.
            write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
            self.log(f"evaluation after round {number}: {shown_figures(figures)}")
        rows = [row for row in rows if row["round"] <= number]
        best = rows[0]
        for row in rows[1:]:
            best = row if is_better(row[self.metric], best[self.metric], self.higher) else best
        if best["round"] == number and newest is not None:
            self._write(newest, self.folder / "best")
        write_report(self.folder)
        stop = 0 < self.settings.patience <= number - best["round"]
        if stop:
            self.log(
                f"stopped after round {number}: {self.settings.patience} rounds brought no better "
                f"{self.metric} than round {best['round']}"
            )
        return stop

    def _write(self, newest: Path, folder: Path) -> Path:
        with write_folder(folder) as part:
            self.export(newest, part)
        return folder


def free_memory() -> None:
    """Free the memory of models that are no longer used."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
