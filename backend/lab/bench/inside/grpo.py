"""One GRPO loop in its own process, ours or one like RePrompt's; `reprise lab bench grpo` runs both.

Usage: grpo.py ours|peer FOLDER SETTINGS. SETTINGS is a GrpoConfig as JSON; its `max_steps` includes the first
step, which is a warm-up. After that step the line {"device", "threads", "steps": renderer steps} is printed.
Then each line read is answered by one line:
{"do": "step"}, for the peer with "steps", takes an optimiser step: {"seconds", "phases", counts};
{"do": "floor"}, ours only, measures the networks alone on the last step: {"write", "render", "update"}.

The peer gets each prompt twice, so that it can take each step with two numbers of renderer steps.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class BenchProcess:
    """Reads requests and sends answers. `request` is the current one, empty during the warm-up."""

    def __init__(
        self, answers: Any, ready_message: dict[str, Any], floor: Callable[[], dict[str, float]] | None
    ):
        self.answers, self.ready, self.floor = answers, ready_message, floor
        self.request: dict[str, Any] = {}
        self.started, self.processor = time.perf_counter(), time.process_time()

    def step_done(self, answer: dict[str, Any]) -> None:
        """Answer after a step. Returns when the next step is requested; ends the process if there is none."""
        self._send(answer if self.request else self.ready)
        for line in sys.stdin:
            self.request = json.loads(line)
            if self.request["do"] == "step":
                self.started, self.processor = time.perf_counter(), time.process_time()
                return
            assert self.floor is not None, "the floor is ours"
            self._send(self.floor())
        raise SystemExit

    def _send(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self.answers, flush=True)


def step_callback(
    process: BenchProcess,
    timer: Any,
    begin: Callable[[dict[str, Any]], None],
    count: Callable[[], dict[str, Any]],
) -> Any:
    """A trainer callback that takes one step for each request, and splits its time into phases.

    `count` returns the step's counts, and in "collected" the seconds of the whole rollout. Time in the
    rollout outside its phases, and after the update, counts as "record".
    """
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            timer.seconds.update(dict.fromkeys(timer.seconds, 0.0))
            begin(process.request)
            self.begun = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            self.ended = time.perf_counter()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not logs or "loss" not in logs:
                return
            seconds, processor = (
                time.perf_counter() - process.started,
                time.process_time() - process.processor,
            )
            did = count()
            spent = {name: timer.seconds[name] for name in ("write", "render", "score")}
            spent["update"] = self.ended - self.begun - did.pop("collected", sum(spent.values()))
            spent["record"] = seconds - sum(spent.values())
            process.step_done({"seconds": seconds, "processor": processor, "phases": spent, **did})

    return Turns()


def ours(config: Any, folder: Path, answers: Any) -> None:
    from reprise.backend.core.config import save_config
    from reprise.backend.lab.bench.floor import NetworkProbe
    from reprise.backend.training.common.run_folder import claim_run_folder
    from reprise.backend.training.grpo.advantages import has_signal
    from reprise.backend.training.grpo.loop import GrpoLoop

    claim_run_folder(folder / "run", save_config(config), resume=False)
    loop = GrpoLoop(config, folder / "run", False, print)
    renderer, trainer = loop.scorer.renderer, loop.trainer
    probe = NetworkProbe(renderer, loop.rewriter, trainer.accelerator.autocast)  # pyright: ignore
    collect, last = loop.rollouts.collect, {}

    def collected(step: int) -> Any:
        started = time.perf_counter()
        last["batch"] = collect(step)
        last["collected"] = time.perf_counter() - started
        return last["batch"]

    def begin(request: dict[str, Any]) -> None:
        probe.reset()

    def count() -> dict[str, Any]:
        groups = last["batch"].groups
        samples = [sample for group in groups for sample in group.samples]
        return {
            "collected": last["collected"],
            "answers": sum(s.written is not None for s in samples),
            "unreadable": sum(not s.drawn for s in samples),
            "pictures": loop.scorer.drawn,
            "reused": sum(len(s.pictures) for s in samples) - loop.scorer.drawn,
            "rows": probe.rows,
            "groups": len(groups),
            "signal": sum(has_signal(group.sums) for group in groups),
        }

    def floor() -> dict[str, float]:
        reference = None
        if config.beta:  # an adapter switched off is the reference
            reference = trainer.ref_model if config.lora is None else trainer.model
        rows = [(group.ids, sample.written.ids) for group, sample in last["batch"].rows]
        measured = {}
        for name, measure in {
            "write": probe.write_seconds,
            "render": probe.render_seconds,
            "update": lambda: probe.update_seconds(reference, rows, config.batch_size),
        }.items():
            loop.timer.enter(name)
            measured[name] = measure()
        return measured

    loop.rollouts.collect = collected
    process = BenchProcess(answers, ready_message(renderer), floor)
    trainer.add_callback(step_callback(process, loop.timer, begin, count))
    loop.run()


def peer(config: Any, folder: Path, answers: Any) -> None:
    import torch
    from transformers import set_seed

    from reprise.backend.factory import open_renderer, open_reward
    from reprise.backend.lab.bench.reprompt_loop import PlainPipeline, RewardFunctions, make_trainer
    from reprise.backend.rewards.scales import to_unit_range
    from reprise.backend.rewards.text import Structure
    from reprise.backend.rewriters.reprompt import EMBEDDED_REWRITER, load_checkpoint
    from reprise.backend.training.common.lora import training_dtype
    from reprise.backend.training.common.offload import StageTimer
    from reprise.backend.training.common.start import system_text
    from reprise.backend.training.grpo.advantages import Member, group_sums, has_signal
    from reprise.backend.training.rollouts.prompts import PromptStream, read_prompts

    set_seed(config.seed)
    gpu = config.device == "auto" and torch.cuda.is_available()
    model, tokenizer, kept = load_checkpoint(
        str(EMBEDDED_REWRITER if config.model == "shapeworld" else config.model),
        "cuda" if gpu else "cpu",
        training_dtype(config.dtype, gpu, config.lora),
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    system = system_text(config, kept.system, str(config.model))
    # The renderer's defaults: its own number of steps, its full text length.
    plain = config.renderer.model_copy(update={"steps": None, "max_sequence_length": None})
    renderer: Any = open_renderer(plain)
    rewards = {name: open_reward(name) for name in config.rewards if name != "structure"}
    rewards["structure"] = Structure(config.reasoning)
    timer, pipeline = StageTimer(), PlainPipeline(renderer)
    reward_functions = RewardFunctions(pipeline, rewards, config.rewards, timer)
    stream, prompts = PromptStream(read_prompts(config.prompts, "train", config.seed), config.seed), []
    for step in range(config.max_steps):
        taken = [(one.prompt, one.judge_prompt) for _, one in stream.take(config.prompts_per_step)]
        prompts += taken * (2 if step else 1)
    accumulation = config.prompts_per_step * config.rewrites // config.batch_size
    trainer = make_trainer(
        model=model,
        tokenizer=tokenizer,
        system=system,
        prompts=prompts,
        reward_functions=reward_functions,
        adapter=config.lora.adapter() if config.lora else None,
        settings={
            "output_dir": str(folder / "peer"),
            "seed": config.seed,
            "max_steps": 2 * config.max_steps - 1,
            "per_device_train_batch_size": config.batch_size,
            "gradient_accumulation_steps": accumulation,
            "num_generations": config.rewrites,
            "max_completion_length": config.max_new_tokens,
            "gradient_checkpointing": config.gradient_checkpointing,
            "learning_rate": config.learning_rate,
            "beta": config.beta,
            "temperature": config.temperature,
            "max_grad_norm": config.max_grad_norm,
            "bf16": gpu and torch.cuda.is_bf16_supported(),
            "use_cpu": not gpu,
            "dataloader_pin_memory": gpu,
        },
    )

    def begin(request: dict[str, Any]) -> None:
        pipeline.steps = request.get("steps", renderer.steps)
        reward_functions.drawn = reward_functions.unreadable = 0

    def count() -> dict[str, Any]:
        kept = {
            name: [to_unit_range(rewards[name].spec, one) for one in scores]
            for name, scores in reward_functions.scores.items()
        }
        answers = [
            Member({name: scores[i] for name, scores in kept.items()})
            for i in range(config.prompts_per_step * config.rewrites)
        ]
        groups = [answers[i : i + config.rewrites] for i in range(0, len(answers), config.rewrites)]
        sums = [group_sums(group, config.rewards, config.std_floor) for group in groups]
        return {
            "answers": len(answers),
            "unreadable": reward_functions.unreadable,
            "pictures": reward_functions.drawn,
            "reused": 0,
            "rows": reward_functions.drawn * pipeline.steps * pipeline.rows_each,
            "groups": len(groups),
            "signal": sum(map(has_signal, sums)),
        }

    trainer.add_callback(
        step_callback(BenchProcess(answers, ready_message(renderer), None), timer, begin, count)
    )
    trainer.train()


def ready_message(renderer: Any) -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": torch.get_num_threads(), "steps": renderer.steps}


def main() -> None:
    side, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print too
    if "reprise" not in sys.modules:  # an installation's, or the pack's by its path
        runpy.run_path(str(Path(os.environ["REPRISE_ROOT"]) / "__main__.py"))["_as_package"]()
    from reprise.backend.core.model_files import quiet_loading
    from reprise.backend.training.grpo.config import GrpoConfig

    with quiet_loading():
        {"ours": ours, "peer": peer}[side](GrpoConfig(**settings), folder, answers)


if __name__ == "__main__":
    main()
