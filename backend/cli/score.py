"""`reprise score`: scores of pictures that exist already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import BadInput
from ..storage.images import read_picture
from ..storage.prompt_files import check_prompt
from . import options


def score(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE…", show_default=False, help="Picture files.")
    ],
    prompt: Annotated[str, typer.Option(help="What the pictures should show, in the user's own words.")],
    names: options.Rewards = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option("--held-out", metavar="NAME", help="A reward that selected nothing, shown apart."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Score pictures against a prompt, each by itself. --json prints an array with an object for each."""
    from ..core.scoring import image_scores
    from ..factory import DEFAULT_JUDGE, open_rewards, parse_reward
    from . import terminal

    text = check_prompt(prompt, "--prompt")
    names, apart = list(dict.fromkeys(names or [DEFAULT_JUDGE])), list(dict.fromkeys(held_out or []))
    both = set(names) & set(apart)
    if both:
        raise BadInput(f"{min(both)} is given as --reward and as --held-out; it can be one of them")
    for name in (*names, *apart):
        parse_reward(name)
    with terminal.quiet_stdout(as_json):
        rewards = open_rewards([*names, *apart])
        rows = []
        for path in images:
            picture = read_picture(path)[None]
            scores = {name: image_scores(reward, picture, [text])[0] for name, reward in rewards.items()}
            rows.append((str(path), scores))
    if as_json:
        terminal.print_json(
            [
                {
                    "image": path,
                    "prompt": text,
                    "scores": {name: scores[name] for name in names},
                    "held_out": {name: scores[name] for name in apart},
                }
                for path, scores in rows
            ]
        )
        return
    table = [(path, *(f"{score:.4f}" for score in scores.values())) for path, scores in rows]
    columns = [*names, *(f"{name} (held out)" for name in apart)]
    terminal.print_table(None, ("image", *columns), table, numbers=columns)
