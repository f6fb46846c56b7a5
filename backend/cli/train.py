"""`reprise train METHOD`: one config, one run folder; in one process, or in several of a launcher."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..core.config import Config
from ..core.errors import BadInput, Interrupted, TrainingFailed
from ..factory import TRAINERS, find_trainer
from ..factory.trainers import Trainer
from ..training import shipped_config, shipped_configs
from ..training.common import distributed
from . import options

SUMMARIES = {
    "sft": "Teach a rewriter by examples (supervised fine-tuning).",
    "grpo": "Improve a rewriter by the pictures that its rewrites give (GRPO).",
    "dpo": "Improve a rewriter with pairs of better and worse rewrites (DPO).",
    "judge": "Tune a vision-language model to judge pictures and previews.",
    "diffusion-dpo": "Improve a renderer with pairs of better and worse pictures; a LoRA (Diffusion-DPO).",
    "ppo": "Improve a refiner by the pictures that its prompts give (PPO).",
    "prip-decoder": "Teach a refiner to write the prompt of a picture (PRIP's Prompt Decoder).",
    "prip-encoder": "Teach a refiner to imagine the picture that people prefer (PRIP's Preference Encoder).",
}

app = typer.Typer(no_args_is_help=True, help="Train what the nodes load; a command for each method.")


def _add(name: str) -> None:
    def train(
        words: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[CONFIG] [key=value…]",
                show_default=False,
                help="A YAML file, or the name of a config that comes with Reprise; single settings on top.",
            ),
        ] = None,
        out: Annotated[
            Path | None,
            typer.Option(
                metavar="RUN", parser=options.path, show_default="a new one in runs/", help="The run folder."
            ),
        ] = None,
        resume: Annotated[
            Path | None,
            typer.Option(
                metavar="RUN",
                parser=options.path,
                help="Go on with a stopped run and its own config. Settings that decide nothing that is "
                "learned may change, such as save_every and keep_gb.",
            ),
        ] = None,
        show_settings: options.ShowSettings = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="With --settings: JSON on stdout, nothing else.")
        ] = False,
    ) -> None:
        if show_settings:
            from . import settings

            return settings.show(find_trainer(name).config, f"train {name}", as_json)
        if as_json:
            raise BadInput("--json is for --settings; leave it out")
        with _one_voice():
            _train(name, list(words or []), out, resume)

    app.command(
        name,
        short_help=SUMMARIES[name],
        help=f"{SUMMARIES[name]} Ctrl-C stops it; --resume RUN goes on exactly.\n\n"
        f"Configs that come with Reprise: {', '.join(shipped_configs(name))}.",
    )(train)


for _name in TRAINERS:
    _add(_name)


def find_config(trainer: str, word: str) -> Path:
    """The file of that name or, if there is none, the shipped config of that name. Raises BadInput."""
    file, shipped = Path(word), shipped_config(trainer, word)
    if file.exists() and not file.is_dir():
        return file
    if shipped.is_file():
        return shipped
    raise BadInput(
        f"there is no config file {word}; name a YAML file, or one of those that come with {trainer}: "
        f"{', '.join(shipped_configs(trainer))}"
    )


def _train(name: str, words: list[str], out: Path | None, resume: Path | None) -> None:
    from ..core.config import load_config, save_config
    from ..storage.files import read_text, slug, write_whole
    from ..storage.outputs import claim
    from ..training.common.run_folder import STARTED_CONFIG, WRITTEN

    named = words.pop(0) if words and "=" not in words[0] else None
    if resume is not None:
        if named is not None or out is not None:
            raise BadInput("--resume RUN takes the run's own config.yaml; give no other config and no --out")
        config_file = resume / "config.yaml"
        if not config_file.is_file():
            raise BadInput(f"{resume} is no run folder: it has no config.yaml")
    else:
        config_file = find_config(name, named) if named is not None else None
    trainer = find_trainer(name)
    if not trainer.several:
        distributed.require_one_process(f"trainer {name!r}", "torchrun and accelerate launch")
    config = load_config(trainer.config, config_file, words)
    text = save_config(config)
    run = resume or out or Path("runs") / slug(f"{name} {config_file.stem if config_file else ''}", salt=text)

    held = ExitStack()  # by the first of several processes

    def begin() -> None:
        written = run / "config.yaml"
        # A call that was killed before the run began leaves the same config, and can be given again.
        other = resume is None and written.exists() and read_text(written, "config", "is") != text
        if other or (resume is None and (run / STARTED_CONFIG).exists()):
            raise BadInput(f"{run} holds a run already; go on with --resume {run}, or give another --out")
        held.enter_context(claim(run, f"train {name}", () if resume else WRITTEN))
        if resume is None:  # what a resumed run may go on with is the trainer's to say, and to write
            write_whole(written, text)

    with held:
        distributed.run_on_main(begin)
        _run(name, trainer, config, run, resume is not None)


def _run(name: str, trainer: Trainer, config: Config, run: Path, resume: bool) -> None:
    from . import terminal

    note = distributed.main_only(terminal.note)
    if distributed.launched_alone():
        note(
            "accelerate launch started one process: on the CPU it starts several through MPI alone; "
            "torchrun --nproc_per_node N does without"
        )
    note(
        f"{name} in {run}"
        + (f", {distributed.world_size()} processes" if distributed.is_distributed() else "")
    )
    again = f"go on with: reprise train {name} --resume {run}"
    try:
        made = trainer.train(config, run, resume=resume, log=note)
    except KeyboardInterrupt as stop:
        raise Interrupted(f"{str(stop) or 'stopped'}; {again}") from stop
    except RuntimeError as error:
        if not distributed.is_peer_loss(error):
            raise
        raise TrainingFailed(f"another process of this run is gone; {again}") from error
    if distributed.is_main():
        terminal.out().print(f"[bold]{made}[/bold]", soft_wrap=True)


@contextmanager
def _one_voice() -> Iterator[None]:
    """Of several processes the first to fail says why; the others end without a word."""
    if not distributed.is_distributed():
        yield
        return
    signal.signal(signal.SIGTERM, _told_to_end)
    try:
        distributed.join()
        yield
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends already, with its own exit code
        if distributed.first_to_fail() or os.environ.get("REPRISE_DEBUG"):
            raise
        stopped = isinstance(error, (KeyboardInterrupt, Interrupted))
        raise SystemExit(130 if stopped else getattr(error, "exit_code", 1)) from None
    distributed.leave()


def _told_to_end(*signal_and_frame: object) -> None:
    """As launchers tell the others when one process has failed: like Ctrl-C, so that all is left in order."""
    raise KeyboardInterrupt("ended from outside, as when another process of the run has failed")
