"""The loop of `dpo`: pairs of rewrites, TRL's DPO trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...core.config import save_config
from ...preferences.store import PairText, RewritePair, Store
from ...rewriters.prompting import FORM, PLAIN_FORM, Answer, Unparsable, answer_ids, parse, prompt_ids
from ...rewriters.reprompt import EMBEDDED_REWRITER
from ..common import distributed
from ..common.lora import merged
from ..common.pairs import TeachesNothing, keep_pairs_of_run, pairs_apart_enough, pairs_of_run
from ..common.run_folder import (
    drop_later_lines,
    export_rewriter,
    newest_checkpoint,
    step_of,
    undo_failed_start,
)
from ..common.start import load_rewriter
from ..common.trl import metrics_callback
from ..sft.train import MAX_DROPPED
from .config import DpoConfig


def learn(config: DpoConfig, run: Path, resume: bool, log: Callable[[str], None]) -> Path:
    """Train on the pairs of `config.preferences` in a run folder that is ours already."""
    from datasets import Dataset
    from transformers import set_seed

    assert config.preferences is not None, "with rounds each has its own"
    final = run / "final"
    with undo_failed_start(run, save_config(config), resume):
        store = Store(config.preferences)
        pairs = pairs_of_run(run, store.all_rewrites()) if resume else None
        if pairs is None:
            pairs = usable_rewrites(store, config.reward, config.margin)
        gpu = distributed.use_gpu(config.device)
        set_seed(config.seed)
        where = str(EMBEDDED_REWRITER) if config.model == "shapeworld" else config.model
        model, tokenizer, kept, system = load_rewriter(where, config, gpu)
        rows = _encoded(pairs, tokenizer, system, config, log)
        newest = newest_checkpoint(run / "checkpoints") if resume else None
        drop_later_lines(run / "metrics.jsonl", step_of(newest))
        log(
            f"{len(rows)} pairs of {len({pair.prompt for pair in pairs})} prompts; "
            + (f"going on from {newest.name}" if newest else "from the start")
        )
        trainer = _trainer(config, run, model, tokenizer, Dataset.from_list(rows), gpu)
        trainer.add_callback(metrics_callback(run / "metrics.jsonl", log))
    keep_pairs_of_run(run, pairs)
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)

    trained = merged(trainer.accelerator.unwrap_model(trainer.model), config.export_dtype)
    export_rewriter(
        final,
        trained,
        tokenizer,
        {
            **kept.model_dump(exclude_none=True),
            "format": 1,
            "role": "rewriter",
            "trainer": "dpo",
            "system": system,
        },
    )
    log(f"saved {final}")
    return final


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


def _encoded(
    pairs: Sequence[RewritePair], tokenizer: Any, system: str, config: DpoConfig, log: Callable[[str], None]
) -> list[dict[str, list[int]]]:
    """Token ids of prompts and of both answers, as TRL's collator takes them."""
    rows, long, unread = [], 0, 0
    for pair in pairs:
        chosen, rejected = (_answer(text, config.reasoning) for text in (pair.chosen, pair.rejected))
        if chosen is None or rejected is None or chosen == rejected:
            unread += 1
            continue
        row = {
            "prompt_ids": prompt_ids(tokenizer, pair.prompt, system=system),
            "chosen_ids": answer_ids(tokenizer, chosen),
            "rejected_ids": answer_ids(tokenizer, rejected),
        }
        longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        if len(row["prompt_ids"]) + longest > config.max_length:
            long += 1
            continue
        rows.append(row)
    if not rows or long > MAX_DROPPED * len(pairs):
        raise TeachesNothing(
            f"of {len(pairs)} pairs {long} are longer than max_length={config.max_length} tokens and "
            f"{unread} cannot be written as answers; raise max_length, or mine other runs"
        )
    if long or unread:
        log(f"left out {long} pairs that are too long and {unread} that cannot be written as answers")
    return rows


def _answer(text: PairText, reasoning: bool) -> Answer | None:
    """The answer that a rewriter would have written; None for one that could not be read back."""
    answer = Answer(" ".join(text.reason.split()) if reasoning else "", " ".join(text.rewrite.split()))
    written = (FORM if answer.reason else PLAIN_FORM).format(reason=answer.reason, prompt=answer.prompt)
    return None if isinstance(parse(written), Unparsable) else answer


def _trainer(config: DpoConfig, run: Path, model: Any, tokenizer: Any, dataset: Any, gpu: bool) -> Any:
    import torch
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(
        output_dir=str(run / "checkpoints"),
        seed=config.seed,
        data_seed=config.seed,
        beta=config.beta,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
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
        logging_nan_inf_filter=False,
        bf16=gpu and torch.cuda.is_bf16_supported(),
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        report_to="none",
        disable_tqdm=True,
    )

    class DpoTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *arguments, **options):
            return dataset  # ours are token ids already

    made = DpoTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=dataset,
        peft_config=config.lora.adapter() if config.lora else None,
    )
    made.remove_callback(PrinterCallback)  # our own callback writes the log
    return made
