"""DPO of a rewriter on pairs of rewrites, of which one led to better pictures, by TRL's DPOTrainer.

Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7. Pairs are what `reprise preferences mine` found in the
records of any run: best against worst rewrite of a prompt, by the mean score of their pictures, whoever wrote
them. Rendering and training are apart, so that this costs no picture. The reference is the rewriter that it
starts from; `rounds` iterates (`dpo_rounds`), or render with `final/`, mine, and start from there.
Departs from TRL: prompt and answers are built by the functions that inference uses, token for token.

The run folder is that of `sft`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..config import Config, save_config
from ..loading import quiet_loading
from ..preferences.store import RewritePair, Store, Text
from ..rewriters.prompting import FORM, PLAIN_FORM, Answer, Unparsable, answer_ids, parse, prompt_ids
from ..rewriters.reprompt import EMBEDDED
from . import ranks
from .folder import claim, cut_lines, export, newest_checkpoint, setting_up, step_of
from .lora import LoraSettings, merged
from .pairs import TeachesNothing, apart, begin_with, begun_with
from .rounds import RewriterRounds
from .sft import MAX_DROPPED, metrics_callback
from .start import check_offload, check_precision, check_schedule, load_rewriter
from .stepping import carry_out


class DpoConfig(Config):
    """Settings of `reprise train dpo`."""

    model: str
    """The rewriter to start from, and the reference: a folder or hub name, or shapeworld."""
    preferences: Path | None = None
    """A folder that `reprise preferences mine` filled; with `rounds` each has its own."""
    rounds: RewriterRounds | None = None
    """Write, draw and judge the pairs, too, again and again with what was learned; see `rounds`."""
    reward: str | None = None
    """Learn from this reward's pairs alone."""
    margin: float = Field(0.0, ge=0)
    """Pairs that are closer are ties; in the same parts as when they were mined."""
    reasoning: bool = True
    """False: the reasons are left out of the answers, and asked for by no one."""
    system: str | None = None
    """System text, kept with the checkpoint; by default the model's own `reprise.json`, then ours."""
    beta: PositiveFloat = 0.1
    """How near the reference is kept."""
    epochs: PositiveFloat = 1.0
    """Passes over the pairs; ignored where `max_steps` is given."""
    max_steps: PositiveInt | None = None
    """Optimiser steps in all."""
    batch_size: PositiveInt = 8
    """Pairs in one forward pass."""
    accumulation: PositiveInt = 1
    """Forward passes in one optimiser step."""
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate: 5e-7 to 1e-6 in full, about 5e-6 with LoRA."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    max_length: PositiveInt = 1024
    """Tokens of prompt and answer together; longer pairs are dropped and counted, never cut."""
    lora: LoraSettings | None = None
    """Train an adapter only."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights while training; auto is bfloat16 for LoRA on a GPU, else (and with `rounds`) float32."""
    export_dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"
    """Of the weights in `final/`; float16 is for storage, CPUs compute in float32. same: as they are trained,
    and float32 (of bfloat16 twice the disk) with an adapter, whose small changes bfloat16 rounds away."""
    gradient_checkpointing: bool = True
    """Less memory, about a fifth slower."""
    device: Literal["auto", "cpu"] = "auto"
    """cpu keeps off the GPU."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Order of the pairs, and the adapter's first weights."""
    save_every: PositiveInt = 100
    """Steps between checkpoints; a killed run loses at most these."""
    log_every: PositiveInt = 10
    """Steps between lines of `metrics.jsonl`."""

    @model_validator(mode="after")
    def _possible(self) -> DpoConfig:
        check_schedule(self.scheduler, self.warmup_ratio)
        check_precision(self.device, self.dtype, self.lora)
        if (self.preferences is None) == (self.rounds is None):
            raise ValueError("pairs come from a folder, preferences, or from rounds; give one of the two")
        if self.rounds is not None and self.reward is not None:
            raise ValueError("the pairs of rounds are those of rounds.rewards; leave reward out")
        if self.rounds is not None:
            check_offload(self.device, self.rounds.offload)
        if self.rounds is not None and self.dtype == "bfloat16":
            raise ValueError(
                "rounds go on from each other's weights, where bfloat16 loses small changes; leave dtype out"
            )
        if self.lora is not None and self.lora.dropout:
            raise ValueError("dropout makes a rewriter differ from its own reference; set lora.dropout=0")
        return self


CONFIG = DpoConfig


def train(config: DpoConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train, and return the folder of the finished rewriter, `run/final`.

    With `resume` a run goes on from its newest whole checkpoint and ends in the same weights, bit for
    bit on a CPU, as if it had never stopped; a finished run is returned as it is.
    Raises BadInput where there is nothing to learn from, and CheckpointError.
    """
    ranks.refuse_several()
    if config.rounds is not None:
        from .dpo_rounds import Rounds

        rounds = config.rounds
        return carry_out(run, save_config(config), resume, log, lambda: Rounds(config, rounds, run, log))
    final = run / "final"
    claim(run, save_config(config), resume)
    if resume and final.is_dir():
        log(f"{run} is finished already")
        return final

    with quiet_loading():
        return learn(config, run, resume, log)


def learn(config: DpoConfig, run: Path, resume: bool, log: Callable[[str], None]) -> Path:
    """Train on the pairs of `config.preferences` in a run folder that is ours already."""
    from datasets import Dataset
    from transformers import set_seed

    assert config.preferences is not None, "with rounds each has its own"
    final = run / "final"
    with setting_up(run, save_config(config), resume):
        store = Store(config.preferences)
        pairs = begun_with(run, store.all_rewrites()) if resume else None
        if pairs is None:
            pairs = usable_rewrites(store, config.reward, config.margin)
        gpu = ranks.gpu(config.device)
        set_seed(config.seed)
        where = str(EMBEDDED) if config.model == "shapeworld" else config.model
        model, tokenizer, kept, system = load_rewriter(where, config, gpu)
        rows = _encoded(pairs, tokenizer, system, config, log)
        newest = newest_checkpoint(run / "checkpoints") if resume else None
        cut_lines(run / "metrics.jsonl", step_of(newest))
        log(
            f"{len(rows)} pairs of {len({pair.prompt for pair in pairs})} prompts; "
            + (f"going on from {newest.name}" if newest else "from the start")
        )
        trainer = _trainer(config, run, model, tokenizer, Dataset.from_list(rows), gpu)
        trainer.add_callback(metrics_callback(run / "metrics.jsonl", log))
    begin_with(run, pairs)
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)

    trained = merged(trainer.accelerator.unwrap_model(trainer.model), config.export_dtype)
    export(
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
    return apart(
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


def _answer(text: Text, reasoning: bool) -> Answer | None:
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

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *arguments, **options):
            return dataset  # ours are token ids already

    made = Trainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=dataset,
        peft_config=config.lora.adapter() if config.lora else None,
    )
    made.remove_callback(PrinterCallback)  # our own callback writes the log
    return made
