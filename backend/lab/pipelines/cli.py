"""`reprise lab pipelines`: what the renderer does with each text-to-image pipeline of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...cli import options, terminal


def pipelines(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", show_default="all", help="Tiny pipelines, such as z-image."),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=options.path,
            help="A page whose table of pipelines is written anew, such as docs/own-models.md.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Try every text-to-image pipeline of the installed diffusers at tiny random weights.

    A table: which are drawn, are exact when pruned, show previews, draw over pictures, take a LoRA, can be
    trained; and why the others are not drawn.
    """
    from ...core.errors import BadInput
    from .table import as_markdown, try_all, write_into

    if names and page:
        raise BadInput("--page takes the table of all pipelines; leave the names out")
    with terminal.quiet_stdout(as_json), terminal.stage_progress() as start:
        result = try_all(names or [], start(""))
    if page is not None:
        write_into(page, result)
    if as_json:
        terminal.print_json(result)
    elif page is None:
        typer.echo(as_markdown(result))
