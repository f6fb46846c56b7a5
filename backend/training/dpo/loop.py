"""The loop of `dpo`: pairs of rewrites, TRL's DPOTrainer."""

from __future__ import annotations

from typing import Any

from ...preferences.store import Store
from ..common.pairs import keep_pairs_of_run, pairs_of_run
from ..common.trl import TextLoop, saves_whole
from .config import DpoConfig
from .data import encode, usable_rewrites


class DpoLoop(TextLoop):
    """One run on the pairs of `config.preferences`."""

    config: DpoConfig

    def load(self) -> None:
        config = self.config
        assert config.preferences is not None, "with rounds each has its own"
        store = Store(config.preferences)
        pairs = pairs_of_run(self.folder, store.all_rewrites())
        self.pairs = usable_rewrites(store, config.reward, config.margin) if pairs is None else pairs
        self.rows = encode(self.pairs, self.tokenizer, self.system, config, self.log)

    def summary(self) -> str:
        return f"{len(self.rows)} pairs of {len({pair.prompt for pair in self.pairs})} prompts"

    def prepare(self) -> None:
        keep_pairs_of_run(self.folder, self.pairs)

    def make_trainer(self, arguments: dict[str, Any]) -> Any:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        class DpoTrainer(saves_whole(DPOTrainer)):
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
