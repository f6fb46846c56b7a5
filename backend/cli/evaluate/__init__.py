"""`reprise evaluate`: measurements with 95 % confidence intervals; one file a command."""

from __future__ import annotations

import typer

from . import judges, rewriters, search, shapeworld

app = typer.Typer(
    no_args_is_help=True,
    help="Measure, with 95 % confidence intervals. A stopped command goes on when called again.",
)
app.command("shapeworld")(shapeworld.shapeworld)
app.command("rewriters")(rewriters.rewriters)
app.command("search")(search.search)
app.command("judges")(judges.judges)
