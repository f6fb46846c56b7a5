"""Supervised fine-tuning of a rewriter on (prompt, reason, rewrite) triples, by TRL's SFTTrainer.

Source: RePrompt (arXiv 2505.17540), first stage: 8,000 examples, lr 1e-5 cosine, one epoch, global
batch 128. Departs from it: the examples are built by the very prompt builder that inference uses, the
loss is on the answer alone, and a killed run goes on exactly.

The data is lines of JSON, {"prompt": what the user typed, "reason": how the scene is rehearsed, "rewrite":
the prompt to draw} and, for mending, "critique": what was wrong with a picture of an earlier rewrite.
`reprise data rewrites` makes them with any chat model.

The run folder: `config.yaml`, `metrics.jsonl` (a line per logged step), `checkpoints/`, and `final/`
in the Hugging Face layout with `reprise.json`, which `RePromptRewriter` loads.

Started in several processes (`torchrun --nproc_per_node N -m reprise train sft …`, on GPUs `accelerate
launch`, too) they share each batch: the trajectory is that of one process within the rounding of sums, but
that an epoch's last, short batch is filled up with examples of its beginning.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...core.config import save_config
from ...core.errors import BadInput
from ...core.model_files import quiet_loading
from ..common import distributed
from ..common.lora import merged
from ..common.run_folder import (
    claim_run_folder,
    drop_later_lines,
    export_rewriter,
    newest_checkpoint,
    step_of,
    undo_failed_start,
)
from ..common.start import load_rewriter
from ..common.trl import metrics_callback
from .config import SftConfig
from .data import encode, read_examples

MAX_DROPPED = 0.1  # share of examples too long for max_length above which a run is refused


CONFIG = SftConfig
SEVERAL = True  # processes may share the work


def train(config: SftConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train, and return the folder of the finished rewriter, `run/final`.

    With `resume` a run goes on from its newest whole checkpoint and ends in the same weights, bit for
    bit on a CPU, as if it had never stopped; a finished run is returned as it is.
    Of several processes (`ranks`) the main one writes, all of it, and alone calls `log`.
    Raises BadInput and CheckpointError.
    """
    final = run / "final"
    log = distributed.main_only(log)
    distributed.run_on_main(lambda: claim_run_folder(run, save_config(config), resume))
    if resume and final.is_dir():
        log(f"{run} is finished already")
        return final

    from transformers import set_seed

    with quiet_loading(), undo_failed_start(run, save_config(config), resume):
        gpu = distributed.use_gpu(config.device)
        set_seed(config.seed)
        model, tokenizer, _, system = load_rewriter(config.model, config, gpu)
        dataset = _dataset(config.data, tokenizer, system, config, log)
        held_out = _dataset(config.eval_data, tokenizer, system, config, log) if config.eval_data else None

        newest = distributed.run_on_main(lambda: _last(run, resume))
        log(f"{len(dataset)} examples; " + (f"going on from {newest.name}" if newest else "from the start"))
        trainer = _trainer(config, run, model, tokenizer, dataset, held_out, gpu)
        trainer.add_callback(metrics_callback(run / "metrics.jsonl", log))
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)

    def finish() -> None:
        trained = merged(trainer.accelerator.unwrap_model(trainer.model), config.export_dtype)
        export_rewriter(
            final,
            trained,
            tokenizer,
            {
                "format": 1,
                "role": "rewriter",
                "trainer": "sft",
                "system": system,
                "max_new_tokens": config.max_new_tokens,
                "temperature": config.temperature,
            },
        )

    distributed.run_on_main(finish)
    log(f"saved {final}")
    return final


def _last(run: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from; lines of steps that will be taken again are taken away."""
    newest = newest_checkpoint(run / "checkpoints") if resume else None
    drop_later_lines(run / "metrics.jsonl", step_of(newest))
    return newest


def _dataset(path: Path, tokenizer: Any, system: str, config: SftConfig, log: Callable[[str], None]) -> Any:
    from datasets import Dataset

    rows = [encode(example, tokenizer, system, config.reasoning) for example in read_examples(path)]
    max_length = config.max_length
    short = [row for row in rows if len(row["input_ids"]) <= max_length]
    dropped = len(rows) - len(short)
    if dropped > MAX_DROPPED * len(rows):
        longest = max(len(row["input_ids"]) for row in rows)
        raise BadInput(
            f"{dropped} of {len(rows)} examples of {path} are longer than max_length={max_length} tokens "
            f"(the longest has {longest}); raise max_length, or shorten the system text"
        )
    if dropped:
        log(f"dropped {dropped} of {len(rows)} examples of {path}: longer than {max_length} tokens")
    return Dataset.from_list(short)


def _trainer(
    config: SftConfig, run: Path, model: Any, tokenizer: Any, dataset: Any, held_out: Any, gpu: bool
) -> Any:
    import torch
    from trl import SFTConfig, SFTTrainer

    batch_size = distributed.per_process(config.batch_size)
    arguments = SFTConfig(
        output_dir=str(run / "checkpoints"),
        seed=config.seed,
        data_seed=config.seed,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=config.accumulation,
        gradient_checkpointing=config.gradient_checkpointing,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup_ratio,  # below 1: a share of all steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        max_length=config.max_length,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=config.log_every,
        eval_strategy="steps" if held_out is not None else "no",
        eval_steps=config.save_every,
        bf16=gpu and torch.cuda.is_bf16_supported(),
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=True,
        log_level_replica="error",
        dataset_kwargs={"skip_prepare_dataset": True},
    )

    class SftTrainer(SFTTrainer):
        def _get_train_sampler(self, *given):
            if not config.group_by_length:
                return super()._get_train_sampler(*given)
            # transformers' own sampler draws from the global generator: a resumed second epoch differs.
            return LengthGroupedSampler(lengths, config.batch_size, config.seed)

        def _save_rng_state(self, output_dir):
            super()._save_rng_state(output_dir)
            # The state that is written next says that all is there, also the other processes' own.
            self.accelerator.wait_for_everyone()

    lengths = [len(ids) for ids in dataset["input_ids"]]
    made = SftTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=dataset,
        eval_dataset=held_out,
        peft_config=config.lora.adapter() if config.lora else None,
    )
    from transformers import PrinterCallback

    made.remove_callback(PrinterCallback)  # our own callback writes the log
    return made


class LengthGroupedSampler:
    """Sampler of indices: batches of like length in random order, the order a matter of (seed, epoch)."""

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
