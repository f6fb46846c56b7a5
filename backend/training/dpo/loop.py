"""The loop of `dpo`: pairs of rewrites, TRL's DPOTrainer."""

from __future__ import annotations

from typing import Any

from ...preferences.store import PairText, RewritePair, Store
from ...rewriters.prompting import FORM, PLAIN_FORM, Answer, Unparsable, answer_ids, parse, prompt_ids
from ..common.data import MAX_LOST
from ..common.pairs import TeachesNothing, keep_pairs_of_run, pairs_apart_enough, pairs_of_run
from ..common.trl import TextLoop
from .config import DpoConfig


class DpoLoop(TextLoop):
    """One run on the pairs of `config.preferences`."""

    config: DpoConfig

    def load(self) -> None:
        config = self.config
        assert config.preferences is not None, "with rounds each has its own"
        store = Store(config.preferences)
        pairs = pairs_of_run(self.folder, store.all_rewrites())
        self.pairs = usable_rewrites(store, config.reward, config.margin) if pairs is None else pairs
        self.rows = self._encode()

    def summary(self) -> str:
        return f"{len(self.rows)} pairs of {len({pair.prompt for pair in self.pairs})} prompts"

    def prepare(self) -> None:
        keep_pairs_of_run(self.folder, self.pairs)

    def _encode(self) -> list[dict[str, list[int]]]:
        """Token ids of prompts and of both answers, as TRL's collator takes them."""
        config, pairs = self.config, self.pairs
        rows, long, unread = [], 0, 0
        for pair in pairs:
            chosen, rejected = (_answer(text, config.reasoning) for text in (pair.chosen, pair.rejected))
            if chosen is None or rejected is None or chosen == rejected:
                unread += 1
                continue
            row = {
                "prompt_ids": prompt_ids(self.tokenizer, pair.prompt, system=self.system),
                "chosen_ids": answer_ids(self.tokenizer, chosen),
                "rejected_ids": answer_ids(self.tokenizer, rejected),
            }
            longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
            if len(row["prompt_ids"]) + longest > config.max_length:
                long += 1
                continue
            rows.append(row)
        if not rows or long > MAX_LOST * len(pairs):
            raise TeachesNothing(
                f"of {len(pairs)} pairs {long} are longer than max_length={config.max_length} tokens and "
                f"{unread} cannot be written as answers; raise max_length, or mine other runs"
            )
        if long or unread:
            self.log(
                f"left out {long} pairs that are too long and {unread} that cannot be written as answers"
            )
        return rows

    def make_trainer(self, arguments: dict[str, Any]) -> Any:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        class DpoTrainer(DPOTrainer):
            def _prepare_dataset(self, dataset, *arguments, **options):
                return dataset  # ours are token ids already

        return DpoTrainer(
            model=self.model,
            args=DPOConfig(**arguments, beta=self.config.beta),
            processing_class=self.tokenizer,
            train_dataset=Dataset.from_list(self.rows),
            peft_config=self.config.lora.adapter() if self.config.lora else None,
        )

    def exported(self) -> dict[str, Any]:
        own = {"format": 1, "role": "rewriter", "trainer": "dpo", "system": self.system}
        return {**self.settings.model_dump(exclude_none=True), **own}


def usable_rewrites(store: Store, reward: str | None, margin: float) -> list[RewritePair]:
    """The pairs to learn from. Raises BadInput, with the reason, where none is left."""
    return pairs_apart_enough(
        store,
        store.all_rewrites(),
        reward,
        margin,
        "pairs of rewrites",
        of="rewrites",
        none="mine runs that tried several rewrites of a prompt",
        ties="lower margin",
    )


def _answer(text: PairText, reasoning: bool) -> Answer | None:
    """The answer that a rewriter would have written; None for one that could not be read back."""
    answer = Answer(" ".join(text.reason.split()) if reasoning else "", " ".join(text.rewrite.split()))
    written = (FORM if answer.reason else PLAIN_FORM).format(reason=answer.reason, prompt=answer.prompt)
    return None if isinstance(parse(written), Unparsable) else answer
