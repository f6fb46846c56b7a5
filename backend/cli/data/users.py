"""`reprise data users`: what users of ShapeWorld type, and what practised users make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .. import options


def users(
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where to write; drawings go into FILE.pictures/.")
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
    from ...shapeworld.drawing import draw
    from ...shapeworld.users import practised_prompts
    from ...storage.files import prepare_folder, write_whole
    from .. import terminal

    pictures = out.with_name(f"{out.name}.pictures")
    if drawn:
        prepare_folder(pictures)
    lines = []
    for number, one in enumerate(practised_prompts(per_task, each, seed)):
        line = {"prompt": one.prompt, "system": one.system}
        if drawn:
            from PIL import Image

            name = f"{number:06}.png"
            Image.fromarray(draw(one.scene, one.style)).save(pictures / name)
            line["image"] = f"{pictures.name}/{name}"
        lines.append(json.dumps(line) + "\n")
    write_whole(out, "".join(lines))
    terminal.out().print(f"{len(lines)} lines in [bold]{out}[/bold]", soft_wrap=True)
