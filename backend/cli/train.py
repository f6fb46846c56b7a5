"""`reprise train`: one trainer, one config, one run folder; in one process, or in several of a launcher."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import BadInput, Interrupted, TrainingFailed, UnknownName
from ..core.registry import TRAINERS, resolve
from ..training.common import distributed


def train(
    name: Annotated[
        str, typer.Argument(metavar="TRAINER", show_default=False, help=", ".join(TRAINERS) + ".")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.yaml] [key=value…]",
            show_default=False,
            help="A config file, and single settings on top.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", show_default="a new one in runs/", help="The run folder.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with a stopped run, with its own config; what decides "
            "nothing that is learned may change, such as save_every and keep_gb.",
        ),
    ] = None,
) -> None:
    """Train what the nodes load. Ctrl-C stops it; --resume RUN goes on exactly."""
    with _one_voice():
        _train(name, list(words or []), out, resume)


def _train(name: str, words: list[str], out: Path | None, resume: Path | None) -> None:
    from ..core.config import load_config, save_config
    from ..storage.files import prepare_folder, slug, write_whole
    from . import terminal

    if name not in TRAINERS:
        raise UnknownName("trainer", name, TRAINERS)
    config_file = Path(words.pop(0)) if words and "=" not in words[0] else None
    if resume is not None:
        if config_file is not None or out is not None:
            raise BadInput("--resume RUN takes the run's own config.yaml; give no other config and no --out")
        config_file = resume / "config.yaml"
        if not config_file.is_file():
            raise BadInput(f"{resume} is no run folder: it has no config.yaml")
    function = resolve("trainer", TRAINERS, name)
    module = import_module(function.__module__)
    if not getattr(module, "SEVERAL", False):
        distributed.require_one_process(f"trainer {name!r}", "torchrun and accelerate launch")
    config = load_config(module.CONFIG, config_file, words)
    text = save_config(config)
    run = resume or out or Path("runs") / slug(f"{name} {config_file.stem if config_file else ''}", salt=text)

    def begin() -> None:
        prepare_folder(run)
        if resume is not None:
            return  # what it may go on with is the trainer's to say, and to write
        if (run / "config.yaml").exists():
            raise BadInput(f"{run} holds a run already; go on with --resume {run}, or give another --out")
        write_whole(run / "config.yaml", text)

    distributed.run_on_main(begin)
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
        made = function(config, run, resume=resume is not None, log=note)
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
