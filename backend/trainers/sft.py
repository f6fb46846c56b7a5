"""Supervised fine-tuning of a rewriter on (prompt, reason, rewrite) triples, by TRL's SFTTrainer.

Source: RePrompt (arXiv 2505.17540), first stage: 8,000 examples, lr 1e-5 cosine, one epoch, global
batch 128. Departs from it: the examples are built by the very prompt builder that inference uses, the
loss is on the answer alone, and a killed run goes on exactly.

The data is lines of JSON, {"prompt": what the user typed, "reason": how the scene is rehearsed, "rewrite":
the prompt to draw} and, for mending, "critique": what was wrong with a picture of an earlier rewrite.
`sft_data` makes them with any chat model.

The run folder: `config.yaml`, `metrics.jsonl` (a line per logged step), `checkpoints/`, and `final/`
in the Hugging Face layout with `reprise.json`, which `RePromptRewriter` loads.

Started in several processes (`torchrun --nproc_per_node N -m reprise train sft …`, on GPUs `accelerate
launch`, too) they share each batch: the trajectory is that of one process within the rounding of sums, but
that an epoch's last, short batch is filled up with examples of its beginning.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ..config import Config, parse_line, save_config
from ..errors import BadInput
from ..loading import quiet_loading
from ..rewriters.prompting import FORM, Answer, Unparsable, answer_ids, parse, prompt_ids
from ..runs import read_text
from . import ranks
from .folder import claim, cut_lines, export, newest_checkpoint, setting_up, step_of
from .lora import LoraSettings, merged
from .start import check_precision, check_schedule, load_rewriter

MAX_DROPPED = 0.1  # share of examples too long for max_length above which a run is refused


class SftConfig(Config):
    """Settings of `reprise train sft`."""

    model: str
    """Folder or hub name of an instruct or chat language model."""
    data: Path
    """JSON lines with `prompt`, `reason`, `rewrite` and, optionally, `critique`; see `reprise train-data`."""
    eval_data: Path | None = None
    """The same for held-out examples; their loss is logged at every checkpoint."""
    reasoning: bool = True
    """False: the reasons are left out of the answers, and asked for by no one."""
    system: str | None = None
    """System text, kept with the checkpoint; by default the model's own `reprise.json`, then ours."""
    epochs: PositiveFloat = 1.0
    """Passes over the data; ignored where `max_steps` is given."""
    max_steps: PositiveInt | None = None
    """Optimiser steps in all."""
    batch_size: PositiveInt = 8
    """Examples in one forward pass, of all processes together; they share them evenly."""
    accumulation: PositiveInt = 1
    """Forward passes in one optimiser step."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate: 1e-5 in full, about 1e-4 with LoRA."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    group_by_length: bool = True
    """Batches hold examples of like length: less padding, the same examples an epoch."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    max_length: PositiveInt = 1024
    """Tokens of prompt and answer together; longer examples are dropped and counted, never cut."""
    lora: LoraSettings | None = None
    """Train an adapter only."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights while training; auto is bfloat16 for LoRA on a GPU, else float32."""
    export_dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"
    """Of the weights in `final/`; float16 is for storage, CPUs compute in float32. same: as they are trained,
    and float32 (of bfloat16 twice the disk) with an adapter, whose small changes bfloat16 rounds away."""
    gradient_checkpointing: bool = True
    """Less memory, about a fifth slower."""
    device: Literal["auto", "cpu"] = "auto"
    """cpu keeps off the GPU."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Order of the examples, and the adapter's first weights."""
    save_every: PositiveInt = 100
    """Steps between checkpoints; a killed run loses at most these."""
    log_every: PositiveInt = 10
    """Steps between lines of `metrics.jsonl`."""
    max_new_tokens: PositiveInt = 512
    """Kept with the checkpoint: how long an answer may get."""
    temperature: PositiveFloat = 0.9
    """Kept with the checkpoint: at which variants are sampled."""

    @model_validator(mode="after")
    def _possible(self) -> SftConfig:
        check_schedule(self.scheduler, self.warmup_ratio)
        check_precision(self.device, self.dtype, self.lora)
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for the prompt in "
                f"max_length={self.max_length}; raise max_length or lower max_new_tokens"
            )
        return self


CONFIG = SftConfig
SEVERAL = True  # processes may share the work


class Example(BaseModel):
    """One line of the data."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    prompt: str = Field(min_length=1)
    """What the user typed."""
    reason: str = Field(min_length=1)
    """How the scene is rehearsed."""
    rewrite: str = Field(min_length=1)
    """The prompt to render."""
    critique: str | None = None
    """What was wrong with a picture of an earlier rewrite."""

    @model_validator(mode="after")
    def _reads_back(self) -> Example:
        answer = parse(FORM.format(reason=self.reason, prompt=self.rewrite))
        if isinstance(answer, Unparsable):
            raise ValueError(f"cannot be read back: the answer {answer.why}; take the tags out of the text")
        return self

    @property
    def answer(self) -> Answer:
        return Answer(" ".join(self.reason.split()), " ".join(self.rewrite.split()))


def read_examples(path: Path) -> list[Example]:
    """The examples of a JSON-lines file; blank lines are skipped. Raises BadInput with the line's number."""
    text = read_text(path, "examples", "are", "; `reprise train-data` makes some")
    examples = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        examples.append(parse_line(Example, line, f"{path}, line {number}"))
    if not examples:
        raise BadInput(f'{path} holds no examples; expected lines {{"prompt": …, "reason": …, "rewrite": …}}')
    return examples


def encode(example: Example, tokenizer: Any, system: str, reasoning: bool = True) -> dict[str, list[int]]:
    """Token ids of prompt and answer; `labels` are -100 on the prompt, so only the answer is learned."""
    asked = prompt_ids(tokenizer, example.prompt, example.critique, system)
    answer = example.answer if reasoning else Answer("", example.answer.prompt)
    written = answer_ids(tokenizer, answer)
    return {"input_ids": asked + written, "labels": [-100] * len(asked) + written}


def train(config: SftConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train, and return the folder of the finished rewriter, `run/final`.

    With `resume` a run goes on from its newest whole checkpoint and ends in the same weights, bit for
    bit on a CPU, as if it had never stopped; a finished run is returned as it is.
    Of several processes (`ranks`) the main one writes, all of it, and alone calls `log`.
    Raises BadInput and CheckpointError.
    """
    final = run / "final"
    log = ranks.main_alone(log)
    ranks.on_main(lambda: claim(run, save_config(config), resume))
    if resume and final.is_dir():
        log(f"{run} is finished already")
        return final

    from transformers import set_seed

    with quiet_loading(), setting_up(run, save_config(config), resume):
        gpu = ranks.gpu(config.device)
        set_seed(config.seed)
        model, tokenizer, _, system = load_rewriter(config.model, config, gpu)
        dataset = _dataset(config.data, tokenizer, system, config, log)
        held_out = _dataset(config.eval_data, tokenizer, system, config, log) if config.eval_data else None

        newest = ranks.on_main(lambda: _last(run, resume))
        log(f"{len(dataset)} examples; " + (f"going on from {newest.name}" if newest else "from the start"))
        trainer = _trainer(config, run, model, tokenizer, dataset, held_out, gpu)
        trainer.add_callback(metrics_callback(run / "metrics.jsonl", log))
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)

    def finish() -> None:
        trained = merged(trainer.accelerator.unwrap_model(trainer.model), config.export_dtype)
        export(
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

    ranks.on_main(finish)
    log(f"saved {final}")
    return final


def _last(run: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from; lines of steps that will be taken again are taken away."""
    newest = newest_checkpoint(run / "checkpoints") if resume else None
    cut_lines(run / "metrics.jsonl", step_of(newest))
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

    batch_size = ranks.part_of(config.batch_size)
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

    class Trainer(SFTTrainer):
        def _get_train_sampler(self, *given):
            if not config.group_by_length:
                return super()._get_train_sampler(*given)
            # transformers' own sampler draws from the global generator: a resumed second epoch differs.
            return LikeLengths(lengths, config.batch_size, config.seed)

        def _save_rng_state(self, output_dir):
            super()._save_rng_state(output_dir)
            # The state that is written next says that all is there, also the other processes' own.
            self.accelerator.wait_for_everyone()

    lengths = [len(ids) for ids in dataset["input_ids"]]
    made = Trainer(
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


class LikeLengths:
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


def metrics_callback(path: Path, log: Callable[[str], None]) -> Any:
    """A callback that appends to `path`."""
    from transformers import TrainerCallback

    class Metrics(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            state.compute_steps(args, state.max_steps)  # not the checkpoint's: save_every may have changed

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not logs or not ({"loss", "eval_loss"} & logs.keys()) or not state.is_world_process_zero:
                return
            row = {"step": state.global_step, **logs}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            losses = " ".join(f"{key} {float(row[key]):.4f}" for key in ("loss", "eval_loss") if key in row)
            log(f"step {state.global_step}/{state.max_steps} {losses}")

    return Metrics()
