"""`reprise data users`: what users of ShapeWorld type, and what practised users make of it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import options

if TYPE_CHECKING:
    from ...shapeworld.users import PractisedPrompt


def users(
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", parser=options.path, help="Where to write; drawings go into FILE.pictures/."
        ),
    ] = Path("users.jsonl"),
    per_task: Annotated[
        int, typer.Option(metavar="N", callback=options.between(1), help="Prompts of each task, at most.")
    ] = 200,
    each: Annotated[
        int, typer.Option(metavar="N", callback=options.between(1), help="Users who write each prompt out.")
    ] = 6,
    drawn: Annotated[bool, typer.Option("--drawn", help="Draw what each user has in mind, too.")] = False,
    seed: options.Seed = 0,
) -> None:
    """Write short prompts of ShapeWorld's users, and long ones made of them, for `reprise data pictures`.

    Each line of FILE is JSON: "prompt", what a user types; "system", the same
    prompt with places and styles; with --drawn also "image". All prompts are of
    the training split.
    """
    from ...shapeworld.users import practised_prompts
    from ...storage.files import prepare_folder
    from ...storage.outputs import write_new
    from .. import terminal

    pictures = out.with_name(f"{out.name}.pictures")
    found = list(practised_prompts(per_task, each, seed))
    lines = []
    for number, one in enumerate(found):
        line = {"prompt": one.prompt, "system": one.system}
        if drawn:
            line["image"] = f"{pictures.name}/{number:06}.png"
        lines.append(json.dumps(line) + "\n")
    # The same call writes the same files: others are somebody's, or of other settings.
    write_new(out, "".join(lines))
    if drawn:
        _draw(prepare_folder(pictures), found)
    terminal.out().print(f"{len(lines)} lines in [bold]{out}[/bold]", soft_wrap=True)


def _draw(folder: Path, found: Sequence[PractisedPrompt]) -> None:
    """Draw what each user has in mind."""
    from PIL import Image

    from ...shapeworld.drawing import draw
    from ...storage.outputs import write_new

    for number, one in enumerate(found):
        png = io.BytesIO()
        Image.fromarray(draw(one.scene, one.style)).save(png, "PNG")
        write_new(folder / f"{number:06}.png", png.getvalue())
