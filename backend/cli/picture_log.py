"""`reprise picture-log`: prompts, pictures and scores that `reprise train prip-encoder` and its like read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import BadInput
from . import options

AT_ONCE = 64  # pictures drawn, judged and kept before the next


def picture_log(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="What to draw: a file with a prompt a "
            'line, shapeworld:N, or JSON lines {"prompt": …, "system": what draws it}. Or what is '
            'drawn and only to be scored: such lines with an "image", DiffusionDB\'s folders, a '
            "folder of pictures with captions.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The log; pictures and scores go into FILE.pictures/.")
    ] = Path("pictures.jsonl"),
    renderer: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="shapeworld", help="What draws, as for `reprise render`."),
    ] = None,
    renders: Annotated[
        int, typer.Option(metavar="N", help="Pictures of each prompt, from seeds of the user's prompt.")
    ] = 4,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", show_default="shapeworld", help="What scores them; once or more."),
    ] = None,
    steps: options.Steps = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Draw and score the pictures that PRIP learns from.

    Each line of FILE is JSON: "prompt", what a user types; "system", the prompt
    that drew the picture, where it is another; "image", its path from FILE's
    folder; "scores". Called again, it goes on where it was stopped.
    """
    from ..factory import (
        DEFAULT_JUDGE,
        DEFAULT_RENDERER,
        EMBEDDED_WORLD,
        find_renderer,
        make_reward,
        parse_weights,
    )
    from ..training.prip.make_log import make_log, read_source
    from . import terminal

    name = renderer or DEFAULT_RENDERER
    if not 1 <= renders <= 256:
        raise BadInput(f"--renders must be 1 to 256, got {renders}")
    options.check_seed(seed)
    find = find_renderer(name, steps)
    records, judge_prompts = read_source(source)
    drawn = all(record.image is not None for record in records)
    if drawn and (renderer is not None or steps is not None):
        raise BadInput(f"all of {source} is drawn already; leave --renderer and --steps out")
    if not reward and (drawn or name not in EMBEDDED_WORLD):
        raise BadInput(
            "say what scores these pictures with --reward; the embedded judge reads ShapeWorld pictures only"
        )
    weights = parse_weights(reward or [DEFAULT_JUDGE])
    if set(weights.values()) != {1.0}:
        raise BadInput("a log keeps the scores of each reward; leave weights to the training that reads it")
    options.prepare_pictured(source, out)
    with terminal.quiet_stdout(as_json), terminal.stage_progress() as start:
        tell = start(source)
        with terminal.keeping(f"{out}.pictures"):
            made = make_log(
                out,
                records,
                find,
                {name: make_reward(name) for name in weights},
                renders=renders,
                seed=seed,
                at_once=AT_ONCE,
                overlap=name.startswith("comfyui:"),
                judge_prompts=judge_prompts,
                progress=lambda done, of: tell("draw", done, of),
            )
    if as_json:
        terminal.print_json(made)
        return
    if made["not_judged"]:
        terminal.note(f"{made['not_judged']} pictures could not be judged")
    terminal.out().print(
        f"[bold]{made['file']}[/bold]: {made['pictures']} pictures of {made['prompts']} "
        f"prompts, {made['drawn']} drawn now",
        soft_wrap=True,
    )
