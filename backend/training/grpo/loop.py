"""The loop of GRPO around TRL's GRPOTrainer.

TRL has the policy, its reference, the loss and the optimiser. Rollouts and advantages are ours (`rollouts`,
`advantages`): TRL's rollout function hands in the rollouts, and our advantages take the place of its own.
"""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.errors import BadInput
from ...factory import open_rewards
from ...reports.training import write_report
from ...rewards.text import Structure
from ...rewriters.prompting import prompt_ids
from ...rewriters.reprompt import RePromptRewriter, load_checkpoint
from ..common import distributed
from ..common.data import check_same_data, lines_digest
from ..common.lora import merged
from ..common.offload import OffloadRole
from ..common.run_folder import append_lines, export_rewriter, resume_point, started_from
from ..common.start import load_rewriter, rewriter_folder
from ..common.trl import log_through, train_from, trl_arguments
from ..rollouts.evaluation import Evaluator, evaluation_prompts
from ..rollouts.prompts import PromptStream, TrainingPrompt, read_prompts
from ..rollouts.scoring import open_scorer
from .config import GrpoConfig
from .rollouts import GrpoBatch, GrpoRollouts
from .trl import hooks_callback, trainer_class


class Policy(RePromptRewriter):
    """The rewriter that is being trained: it writes in eval mode, in the precision that it is trained in."""

    autocast: Callable[[], Any] = staticmethod(contextlib.nullcontext)

    def generate(self, *arguments: Any, **options: Any) -> Any:
        training = self.model.training
        self.model.eval()
        try:
            with self.autocast():
                return super().generate(*arguments, **options)
        finally:
            self.model.train(training)


class GrpoLoop:
    """One run. Everything that is loaded is loaded here; `run` trains and exports."""

    def __init__(self, config: GrpoConfig, run: Path, resume: bool, log: Callable[[str], None]):
        from transformers import set_seed

        self.config, self.folder, self.resume, self.log = config, run, resume, log
        self.checkpoint = distributed.run_on_main(lambda: resume_point(run, resume, log))
        self.gpu = distributed.use_gpu(config.device)
        rewards = open_rewards((*config.rewards, *config.held_out))
        rewards["structure"] = Structure(config.reasoning)
        set_seed(config.seed)
        model, tokenizer, settings, system = load_rewriter(str(self._start()), config, self.gpu)
        self.exported = {
            "format": 1,
            "role": "rewriter",
            "trainer": "grpo",
            "system": system,
            "max_new_tokens": config.max_new_tokens,
            "temperature": settings.temperature or 0.9,
        }
        self.rewriter = Policy(
            (model, tokenizer),
            system=system,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            batch_size=config.write_batch,
        )
        prompts, sets = self._prompts()
        text_rewards = {name: one for name, one in rewards.items() if one.spec.reads != "images"}
        picture_rewards = {name: one for name, one in rewards.items() if name not in text_rewards}
        policy = OffloadRole(
            lambda: [m for m in (self.trainer.model, self.trainer.ref_model) if m is not None],
            lambda: self.trainer.optimizer,
        )
        self.scorer = open_scorer(config, run, "cuda" if self.gpu else "cpu", picture_rewards, policy)
        self.timer = self.scorer.timer
        stream = PromptStream(prompts, config.seed)
        self.rollouts = GrpoRollouts(self.rewriter, self.scorer, text_rewards, stream, config)
        self.evaluator = Evaluator(self.rewriter, self.scorer, sets, config)
        self.batch: GrpoBatch | None = None
        self.trainer = self._trainer(model, tokenizer)
        self.rewriter.autocast = self.trainer.accelerator.autocast
        log(f"{len(prompts)} prompts; {started_from(self.checkpoint)}")

    def run(self) -> Path:
        """Train from the start or from the checkpoint, and return `final/`."""
        final = self.folder / "final"
        distributed.run_on_main(self._check_prompts)
        train_from(self.trainer, self.checkpoint)
        self.timer.enter("update")
        distributed.run_on_main(lambda: self._finish(final))
        self.log(f"saved {final}; as models/reprise/rewriters/NAME nodes and --rewriter know it by name")
        return final

    def _finish(self, final: Path) -> None:
        self._export(final, self._policy())
        write_report(self.folder, finished=True)

    # What the run is made of

    def _start(self) -> Path | str:
        """Where the first weights are. New ones are stored in the run's folder, for the reference on
        resume."""
        where = rewriter_folder(self.config.model)
        if self.config.init == "weights":
            return where
        start = self.folder / "start"

        def make() -> None:
            if self.resume and start.is_dir():
                return
            from transformers import AutoModelForCausalLM

            model, tokenizer, settings = load_checkpoint(where, "cpu", "float32")
            export_rewriter(
                start,
                AutoModelForCausalLM.from_config(model.config),
                tokenizer,
                settings.model_dump(exclude_none=True),
            )

        distributed.run_on_main(make)
        return start

    def _check_prompts(self) -> None:
        now = {"prompts": lines_digest(one.model_dump_json() for one in self.rollouts.stream.prompts)}
        check_same_data(self.folder, self.config.prompts, now, self.checkpoint is not None)

    def _prompts(self) -> tuple[list[TrainingPrompt], dict[str, list[TrainingPrompt]]]:
        config = self.config
        prompts = read_prompts(config.prompts, "train", config.seed)
        sets = evaluation_prompts(prompts, config.eval_prompts, config.paraphrases)
        longest = self.rewriter.context_length() - config.max_new_tokens
        for one in (*prompts, *(one for some in sets.values() for one in some)):
            length = len(prompt_ids(self.rewriter.tokenizer, one.prompt, system=self.rewriter.system))
            if length > longest:
                raise BadInput(
                    f"the prompt {one.prompt[:60]!r} has {length} tokens with its instructions, and the "
                    f"model's context has room for {longest}; shorten it, or lower max_new_tokens"
                )
        return prompts, sets

    def _trainer(self, model: Any, tokenizer: Any) -> Any:
        from datasets import Dataset
        from trl import GRPOConfig

        config = self.config
        accumulation = config.prompts_per_step * config.rewrites // config.batch_size
        arguments = GRPOConfig(
            **trl_arguments(config, self.folder, self.gpu),
            max_steps=config.max_steps,
            per_device_train_batch_size=distributed.per_process(config.batch_size),
            gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation,
            num_generations=config.rewrites,
            num_iterations=config.iterations,
            beta=config.beta,
            epsilon=config.epsilon_low,
            epsilon_high=config.epsilon_high,
            loss_type=config.loss,
            temperature=config.temperature,
            max_completion_length=config.max_new_tokens,
            scale_rewards="none",  # advantages are ours
            logging_steps=1,
            # The stream knows the prompts; TRL's rows only count them.
            ignore_data_skip=True,
            shuffle_dataset=False,
            remove_unused_columns=False,
        )
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        made = trainer_class()(
            hooks=self,
            model=model,
            args=arguments,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": [""] * config.prompts_per_step}),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            rollout_func=self._roll_out,
            peft_config=config.lora.adapter() if config.lora else None,
        )
        log_through(made, hooks_callback(self))
        return made

    def _roll_out(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """TRL's rollout function: a row for each rewrite, contiguous by group."""
        self.rewriter.model = self._policy()
        self.batch = batch = self.rollouts.collect(trainer.state.global_step + 1)
        rows = distributed.local_share(batch.rows)
        assert len(rows) == len(prompts), "TRL counts rows, the stream counts prompts"
        record = self.folder / "rollouts" / "rollouts.jsonl"
        distributed.run_on_main(lambda: append_lines(record, batch.lines))
        self.timer.enter("update")
        written = [(group, sample, sample.written) for group, sample in rows if sample.written]
        return {
            "prompt_ids": [group.ids for group, _, _ in written],
            "completion_ids": [one.ids for _, _, one in written],
            "logprobs": [one.logps for _, _, one in written],
            # A dropped sample is no evidence: none of its tokens counts.
            "env_mask": [[int(sample.dropped is None)] * len(one.ids) for _, sample, one in written],
        }

    # What TRL's trainer asks for (`TrainingHooks`)

    def advantages(self) -> list[float]:
        assert self.batch is not None
        return [sample.advantage or 0.0 for _, sample in distributed.local_share(self.batch.rows)]

    def state(self) -> dict[str, Any]:
        return {"position": self.rollouts.stream.position, "recent": self.evaluator.recent}

    def restore(self, state: dict[str, Any]) -> None:
        self.rollouts.stream.position, self.evaluator.recent = state["position"], state["recent"]

    def start_step(self) -> None:
        self.started = time.perf_counter()
        self.scorer.start_step()

    def end_step(self) -> dict[str, Any]:
        seconds = self.timer.seconds
        took = time.perf_counter() - self.started  # by the main process's clock, as all seconds here
        seconds["update"] = took - sum(value for name, value in seconds.items() if name != "update")
        figures = self.batch.figures if self.batch else {}
        row = {**figures, "seconds": round(took, 3), **self.scorer.step_figures()}
        if distributed.is_distributed():
            self.scorer.cache.recount()
        if self.batch is not None:
            self.evaluator.recent.append(self.batch.figures["reward"])
            self.batch = None
        return row

    def evaluate(self, step: int) -> bool:
        if step % self.config.eval_every and step < self.config.max_steps:
            return False
        start = time.perf_counter()
        found = self.evaluator.evaluate(step)
        if found is None:
            return False
        figures, more = found
        row = {"step": step, **figures, **more, "seconds": round(time.perf_counter() - start, 2)}
        stop = distributed.run_on_main(
            lambda: self.evaluator.record(self.folder, row, self._export_best, self.log)
        )
        self.timer.enter("update")
        return stop

    def log_step(self, row: dict[str, Any]) -> None:
        words = [f"step {row['step']}/{self.config.max_steps}", f"loss {row['loss']:.4f}"]
        if "reward" in row:
            words += [
                f"reward {row['reward']:.3f}",
                f"flat {row['zero_variance']:.2f}",
                f"unparsable {row['unparsable']:.2f}",
            ]
        words += [f"{name} {row[name]:.4f}" for name in ("kl", "ratio") if name in row]
        self.log(" ".join([*words, f"{row['seconds']:.1f} s"]))

    # What comes out

    def _policy(self) -> Any:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def _export_best(self) -> None:
        # Merging an adapter and rounding to another dtype would change the weights that are trained.
        self._export(self.folder / "best", copy.deepcopy(self._policy()))

    def _export(self, folder: Path, model: Any) -> None:
        export_rewriter(
            folder, merged(model, self.config.export_dtype), self.rewriter.tokenizer, self.exported
        )
