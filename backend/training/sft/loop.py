"""The loop of `sft`, on TRL's SFTTrainer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..common import distributed
from ..common.data import check_lost, check_same_data, lines_digest
from ..common.trl import TextLoop, saves_whole
from .config import SftConfig
from .data import encode, read_examples


class SftLoop(TextLoop):
    """One run."""

    config: SftConfig

    def load(self) -> None:
        self.read: dict[str, str] = {}  # SHA-256 of the examples by the setting that names their file
        self.examples = self._dataset("data", self.config.data)
        held_out = self.config.eval_data
        self.held_out = self._dataset("eval_data", held_out) if held_out else None

    def summary(self) -> str:
        return f"{len(self.examples)} examples"

    def prepare(self) -> None:
        resumed = self.checkpoint is not None
        distributed.run_on_main(lambda: check_same_data(self.folder, self.config.data, self.read, resumed))

    def _dataset(self, setting: str, path: Path) -> Any:
        from datasets import Dataset

        config, examples = self.config, read_examples(path)
        self.read[setting] = lines_digest(one.model_dump_json() for one in examples)
        rows = [encode(one, self.tokenizer, self.system, config.reasoning) for one in examples]
        short = [row for row in rows if len(row["input_ids"]) <= config.max_length]
        longest = max(len(row["input_ids"]) for row in rows)
        check_lost(
            len(rows) - len(short),
            len(rows),
            f"the examples of {path}",
            f"are longer than max_length={config.max_length} tokens (the longest has {longest})",
            "raise max_length, or shorten the system text",
            self.log,
        )
        return Dataset.from_list(short)

    def make_trainer(self, arguments: dict[str, Any]) -> Any:
        from trl import SFTConfig, SFTTrainer

        config = self.config
        lengths = [len(ids) for ids in self.examples["input_ids"]]

        class SftTrainer(saves_whole(SFTTrainer)):
            def _get_train_sampler(self, *given):
                if not config.group_by_length:
                    return super()._get_train_sampler(*given)
                # transformers' own sampler draws from the global generator: a resumed second epoch differs.
                return LengthGroupedSampler(lengths, config.batch_size, config.seed)

        return SftTrainer(
            model=self.model,
            args=SFTConfig(
                **arguments,
                per_device_eval_batch_size=arguments["per_device_train_batch_size"],
                eval_strategy="steps" if self.held_out is not None else "no",
                eval_steps=config.save_every,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            processing_class=self.tokenizer,
            train_dataset=self.examples,
            eval_dataset=self.held_out,
            peft_config=config.lora.adapter() if config.lora else None,
        )

    def exported(self) -> dict[str, Any]:
        return {
            "format": 1,
            "role": "rewriter",
            "trainer": "sft",
            "system": self.system,
            "max_new_tokens": self.config.max_new_tokens,
            "temperature": self.config.temperature,
        }


class LengthGroupedSampler:
    """Sampler of indices: batches of similar length in random order, which follows from (seed, epoch)."""

    POOL = 50  # batches sorted together

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed} {self.epoch}")
        order = rng.sample(range(len(self)), len(self))
        whole = len(order) - len(order) % self.batch_size
        batches = []
        for start in range(0, whole, self.POOL * self.batch_size):
            pool = order[start : min(start + self.POOL * self.batch_size, whole)]
            pool.sort(key=self.lengths.__getitem__)
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        rng.shuffle(batches)
        # The short batch stays last, or it would shift all after it.
        return iter([index for batch in batches for index in batch] + order[whole:])
