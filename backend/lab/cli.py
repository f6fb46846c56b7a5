"""`reprise lab`: what only the developers run. The command line shows it where this folder is present."""

from __future__ import annotations

import typer

from .bench import cli as bench
from .pipelines.cli import pipelines
from .weights import cli as weights

app = typer.Typer(
    no_args_is_help=True, help="Benchmarks, trials of pipelines, recipes of the embedded weights."
)
app.command()(pipelines)
app.add_typer(bench.app, name="bench")
app.add_typer(weights.app, name="weights")
