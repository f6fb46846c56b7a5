"""Rounds of DPO of a rewriter: it writes, what it wrote is drawn and scored, and it learns from that.

Source: see `rounds`. Rewrites are written and scored as in GRPO (`rollouts.rewrites`): all rewrites of a
prompt share their seeds, and one that cannot be read is never drawn and is in no pair. A rewrite's score is
the weighted mean of its rewards, each brought to 0..1 by its range.

A round starts from the rewriter of the round before, which is its reference, too. An adapter is merged after
each round, and the next round has a new one. Weights are float32 from round to round, so that no bit is lost.
Quality falls after some rounds: `patience` stops there, and `best/` holds the round that did best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.config import save_config
from ...factory import open_renderer
from ...preferences.store import PairText, RewritePair, Store
from ...rewriters.reprompt import RePromptRewriter, load_checkpoint
from ...storage.files import write_whole
from ..common import distributed
from ..common.lora import merged
from ..common.start import load_rewriter
from ..rollouts.evaluation import evaluate
from ..rollouts.prompts import PromptStream
from ..rollouts.rewrites import RewriteGroup, RewriteRollouts
from ..rounds import Rounds
from .config import RewriterRounds
from .loop import DpoLoop

if TYPE_CHECKING:
    from .config import DpoConfig


class DpoRounds(Rounds):
    def __init__(self, config: DpoConfig, rounds: RewriterRounds, run: Path, log: Callable[[str], None]):
        super().__init__(rounds, run, config.seed, config.device, log)
        self.config, self.rounds = config.model_copy(update={"dtype": "float32"}), rounds
        if not self.round_folder(
            1
        ).exists():  # a setting that it does not have is refused before anything is written
            open_renderer(rounds.renderer, config.device)

    def gather(self, number: int, newest: Path | None) -> dict[str, float]:
        prompts, each = self.prompts_of(number), self.rounds.prompts_at_once
        rows = self.recorded_rows(number, each)
        if len(rows) < len(prompts):
            with self.rollouts(newest) as rollouts:
                for start in range(len(rows), len(prompts), each):
                    groups = rollouts.groups(prompts[start : start + each])
                    fresh = [_row(rollouts, group) for group in groups]
                    self.record(number, fresh)
                    rows += fresh
                    self.log(f"round {number}: wrote and drew for {len(rows)} of {len(prompts)} prompts")
        several = [(row, texts) for row in rows if len(texts := _texts(row)) > 1]
        pairs = [pair for row, texts in several if (pair := self._pair(row, texts, number))]
        store = Store(self.round_folder(number) / "preferences", create=True)
        store.add_rewrites(pairs)
        scores = [text["score"] for row in rows for text in row["rewrites"]]
        return {
            "prompts": len(rows),
            "pairs": len(pairs),
            "ties": len(several) - len(pairs),
            "alone": len(rows) - len(several),
            "gone": 0,
            "reward": sum(scores) / max(1, len(scores)),
        }

    def learn(self, number: int, newest: Path | None) -> Path:
        folder = self.round_folder(number)
        config = self.config.model_copy(
            update={
                "rounds": None,
                "preferences": folder / "preferences",
                "export_dtype": "same",
                "model": str(newest or self.config.model),
            }
        )
        write_whole(folder / "config.yaml", save_config(config))
        return DpoLoop(config, folder, True, lambda line: self.log(f"round {number}: {line}")).run()

    def evaluate(self, newest: Path | None) -> tuple[dict[str, float], list[dict[str, Any]]]:
        with self.rollouts(newest) as rollouts:
            return evaluate(rollouts.rewriter, rollouts.scorer, self.sets, unchanged=newest is None)

    def export(self, newest: Path, folder: Path) -> None:
        super().export(newest, folder)
        if self.config.export_dtype != "same":
            model, _, _ = load_checkpoint(str(newest))
            merged(model, self.config.export_dtype).save_pretrained(folder)

    @contextmanager
    def rollouts(self, newest: Path | None) -> Iterator[RewriteRollouts[RewriteGroup]]:
        """The rewriter of a round, the renderer and the judges at work."""
        config, rounds = self.config, self.rounds
        where, gpu = str(newest or config.model), distributed.use_gpu(config.device)
        model, tokenizer, _, system = load_rewriter(where, config, gpu)
        writer = RePromptRewriter(
            (model, tokenizer),
            system=system,
            max_new_tokens=rounds.max_new_tokens,
            temperature=rounds.temperature,
            batch_size=rounds.write_batch,
        )
        text_rewards = {name: one for name, one in self.rewards.items() if name not in self.picture_rewards}
        stream = PromptStream(self.prompts, self.seed)
        with self.open_scorer(open_renderer(rounds.renderer, config.device), model) as scorer:
            yield RewriteRollouts(writer, scorer, text_rewards, stream, rounds)

    def _pair(self, row: Mapping[str, Any], texts: list[PairText], number: int) -> RewritePair | None:
        """Best against worst of one prompt's rewrites; None for a tie."""
        ranked = sorted(texts, key=lambda text: -text.score)
        margin = ranked[0].score - ranked[-1].score
        if margin <= 0 or margin < self.config.margin:
            return None
        return RewritePair(
            prompt=row["prompt"],
            chosen=ranked[0],
            rejected=ranked[-1],
            reward="+".join(self.rounds.rewards),
            margin=margin,
            source="round",
            run=str(number),
            renderer=self.rounds.renderer.name,
        )


def _texts(row: Mapping[str, Any]) -> list[PairText]:
    """A prompt's rewrites that differ."""
    return list(
        {
            (one["reason"], one["rewrite"]): PairText(
                reason=one["reason"],
                rewrite=one["rewrite"],
                score=one["score"],
                pictures=len(one["pictures"]),
            )
            for one in row["rewrites"]
        }.values()
    )


def _row(rollouts: RewriteRollouts[RewriteGroup], group: RewriteGroup) -> dict[str, Any]:
    """One prompt on record: the rewrites that were read and drawn, and how many were not."""
    whole = [sample for sample in group.valid if sample.drawn]
    return {
        "prompt": group.source.prompt,
        "judged_as": group.source.judged_as or None,
        "seeds": group.seeds,
        "unparsable": sum(not sample.drawn for sample in group.samples),
        "dropped": len(group.samples) - len(group.valid),
        "rewrites": [
            {
                "reason": sample.rewrite.reason,
                "rewrite": sample.rewrite.prompt,
                "pictures": sample.pictures,
                "scores": sample.scores,
                "score": rollouts.reward_of(sample),
            }
            for sample in whole
        ],
    }
