"""The loop of GRPO around TRL's GRPOTrainer: who is who, what is logged, when it stops.

TRL keeps the policy, its reference, the loss and the optimiser. Rollouts and advantages are ours
(`rollouts`, `advantages`): its rollout function hands them in, and the advantages that it would compute
are replaced by ours.
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
from ...factory import open_renderer, open_reward
from ...reports.training import write_report
from ...rewards.text import Structure
from ...rewriters.prompting import prompt_ids
from ...rewriters.reprompt import RePromptRewriter, load_checkpoint
from ...storage.cache import Cache
from ..common import distributed
from ..common.lora import merged
from ..common.offload import StageTimer, judge_modules, modules_mover, renderer_modules
from ..common.run_folder import append_lines, export_rewriter, resume_point, started_from
from ..common.start import load_rewriter, rewriter_folder
from ..common.trl import log_through, trl_arguments
from ..rollouts.evaluation import evaluate, evaluation_prompts, record_evaluation, selection_metric
from ..rollouts.prompts import PromptStream, TrainingPrompt, read_prompts
from ..rollouts.rewrites import RolloutBatch, Rollouts
from ..rollouts.scoring import PictureScorer
from .config import GrpoConfig
from .trl import trainer_class, watch

PICTURES = "rollouts/pictures"


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
        self.checkpoint = distributed.run_on_main(lambda: resume_point(run, resume))
        self.gpu = distributed.use_gpu(config.device)
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
        prompts, self.sets = self._prompts()
        rewards = {name: self._reward(name) for name in (*config.rewards, *config.held_out)}
        looking = {name: reward for name, reward in rewards.items() if reward.spec.reads == "images"}
        renderer = open_renderer(config.renderer)
        device = "cuda" if self.gpu else "cpu"
        self.timer = StageTimer(
            device, self._movers(renderer, looking) if config.offload and self.gpu else None
        )
        cache = Cache(run / PICTURES, int(config.keep_gb * 2**30))
        self.scorer = PictureScorer(
            renderer, looking, cache, self.timer, config.renderer.batch, overlap=config.renderer.external
        )
        self.rollouts = Rollouts(
            self.rewriter,
            self.scorer,
            {n: r for n, r in rewards.items() if n not in looking},
            {n: r.spec for n, r in rewards.items()},
            PromptStream(prompts, config.seed),
            config,
            self.timer,
        )
        self.watched, self.higher = selection_metric(config.held_out, config.rewards, looking)
        self.recent: list[float] = []  # training rewards since the last evaluation
        self.batch: RolloutBatch | None = None
        self.trainer = self._trainer(model, tokenizer)
        self.rewriter.autocast = self.trainer.accelerator.autocast
        log(f"{len(prompts)} prompts; " + started_from(self.checkpoint))

    def run(self) -> Path:
        final = self.folder / "final"
        self.trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        self.timer.enter("update")
        distributed.run_on_main(lambda: self._finish(final))
        self.log(f"saved {final}; as models/reprise/rewriters/NAME nodes and --rewriter know it by name")
        return final

    def _finish(self, final: Path) -> None:
        self._export(final, self._policy())
        write_report(self.folder, finished=True)

    # What the run is made of

    def _start(self) -> Path | str:
        """Where the first weights are. New ones are kept in the run's folder: the reference is read again."""
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

    def _reward(self, name: str) -> Any:
        if name == "structure":
            return Structure(self.config.reasoning)
        return open_reward(name)

    def _prompts(self) -> tuple[list[TrainingPrompt], dict[str, list[TrainingPrompt]]]:
        config = self.config
        prompts = read_prompts(config.prompts, "train", config.seed)
        sets = evaluation_prompts(prompts, config.eval_prompts, config.paraphrases)
        longest = self.rewriter.context_length() - config.max_new_tokens
        for one in [*prompts, *(one for asked in sets.values() for one in asked)]:
            length = len(prompt_ids(self.rewriter.tokenizer, one.prompt, system=self.rewriter.system))
            if length > longest:
                raise BadInput(
                    f"the prompt {one.prompt[:60]!r} has {length} tokens with its instructions, and the "
                    f"model's context has room for {longest}; shorten it, or lower max_new_tokens"
                )
        return prompts, sets

    def _movers(self, renderer: Any, rewards: dict[str, Any]) -> dict[str, Callable[[str], None]]:
        rewriter = modules_mover(
            lambda: [m for m in (self.trainer.model, self.trainer.ref_model) if m is not None],
            lambda: self.trainer.optimizer,
        )
        judging = modules_mover(lambda: judge_modules(rewards.values()))
        # While someone else draws, the judges are at work.
        elsewhere = self.config.renderer.external
        drawing = judging if elsewhere else modules_mover(lambda: renderer_modules(renderer))
        return {"write": rewriter, "update": rewriter, "render": drawing, "score": judging}

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
            loop=self,
            model=model,
            args=arguments,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": [""] * config.prompts_per_step}),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            rollout_func=self._roll_out,
            peft_config=config.lora.adapter() if config.lora else None,
        )
        log_through(made, watch(self))
        return made

    # What happens in a step

    def _roll_out(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """TRL's rollout function: a row for each rewrite, contiguous by group."""
        self.rewriter.model = self._policy()
        step = trainer.state.global_step + 1
        self.batch = batch = self.rollouts.collect(step)
        rows = distributed.local_share(batch.rows)
        assert len(rows) == len(prompts), "TRL counts rows, the stream counts prompts"
        distributed.run_on_main(
            lambda: append_lines(self.folder / "rollouts" / "rollouts.jsonl", batch.lines)
        )
        self.timer.enter("update")
        written = [(group, sample, sample.written) for group, sample in rows if sample.written]
        return {
            "prompt_ids": [group.ids for group, _, _ in written],
            "completion_ids": [one.ids for _, _, one in written],
            "logprobs": [one.logps for _, _, one in written],
            # A dropped sample is no evidence: none of its tokens counts.
            "env_mask": [[int(sample.dropped is None)] * len(one.ids) for _, sample, one in written],
        }

    def evaluate(self, step: int) -> bool:
        """Evaluate, keep the best weights; whether training should stop."""
        if not self.sets:
            return False
        start = time.perf_counter()
        figures, samples = evaluate(self.rollouts, self.sets, unchanged=step == 0)
        seconds = round(time.perf_counter() - start, 2)
        stop = distributed.run_on_main(lambda: self._judge(step, figures, samples, seconds))
        self.recent = []
        self.timer.enter("update")
        return stop

    def _judge(
        self, step: int, figures: dict[str, float], samples: list[dict[str, Any]], seconds: float
    ) -> bool:
        """Put an evaluation on record, keep the best weights; whether training should stop."""
        row: dict[str, Any] = {
            "step": step,
            "training_reward": sum(self.recent) / len(self.recent) if self.recent else None,
            "seconds": seconds,
            **figures,
            "samples": samples,
        }
        # Merging an adapter and rounding to another dtype would change the weights that are trained.
        return record_evaluation(
            self.folder,
            row,
            self.watched,
            self.higher,
            self.config.patience if self.config.held_out else 0,
            lambda: self._export(self.folder / "best", copy.deepcopy(self._policy())),
            self.log,
        )

    def _policy(self) -> Any:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def _export(self, folder: Path, model: Any) -> None:
        export_rewriter(
            folder, merged(model, self.config.export_dtype), self.rewriter.tokenizer, self.exported
        )
