"""`reprise data`: what trainings learn from; one file a command."""

from __future__ import annotations

import typer

from . import judge, pictures, rewrites, users

app = typer.Typer(no_args_is_help=True, help="Make what trainings learn from.")
app.command("rewrites")(rewrites.rewrites)
app.command("pictures")(pictures.pictures)
app.command("judge")(judge.judge)
app.command("users")(users.users)
