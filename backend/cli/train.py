"""`reprise train`: one trainer, one config, one run folder."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInput, UnknownName
from ..registry import TRAINERS, resolve


def train(
    name: Annotated[
        str, typer.Argument(metavar="TRAINER", show_default=False, help=", ".join(TRAINERS) + ".")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG.yaml] [key=value…]", show_default=False,
                       help="A config file, and single settings on top."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", show_default="a new one in runs/", help="The run folder.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a stopped run, with its own config.")
    ] = None,
) -> None:
    """Train what the nodes load. Ctrl-C stops it; --resume RUN goes on exactly."""
    from ..config import load_config, save_config
    from ..runs import prepare_folder, slug, write_whole
    from . import terminal

    if name not in TRAINERS:
        raise UnknownName("trainer", name, TRAINERS)
    words = list(words or [])
    config_file = Path(words.pop(0)) if words and "=" not in words[0] else None
    if resume is not None:
        if config_file is not None or out is not None:
            raise BadInput("--resume RUN takes the run's own config.yaml; give no other config and no --out")
        config_file = resume / "config.yaml"
        if not config_file.is_file():
            raise BadInput(f"{resume} is no run folder: it has no config.yaml")
    function = resolve("trainer", TRAINERS, name)
    config = load_config(import_module(function.__module__).CONFIG, config_file, words)
    text = save_config(config)
    run = resume or out or Path("runs") / slug(f"{name} {config_file.stem if config_file else ''}", salt=text)
    if resume is None and (run / "config.yaml").exists():
        raise BadInput(f"{run} holds a run already; go on with --resume {run}, or give another --out")
    write_whole(prepare_folder(run) / "config.yaml", text)
    terminal.note(f"{name} in {run}")
    try:
        made = function(config, run, resume=resume is not None, log=terminal.note)
    except KeyboardInterrupt as stop:
        from ..errors import Interrupted

        raise Interrupted(f"stopped; go on with: reprise train {name} --resume {run}") from stop
    terminal.out().print(f"[bold]{made}[/bold]", soft_wrap=True)
