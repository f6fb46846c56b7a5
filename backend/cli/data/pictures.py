"""`reprise data pictures`: prompts, pictures and scores; `train prip-encoder` and `-decoder` read them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ...core.errors import BadInput
from .. import checks, options
from ..renderer_options import renderer_options

AT_ONCE = 64  # pictures drawn, judged and kept before the next


@renderer_options
def pictures(
    source: options.PictureSource,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", parser=options.path, help="The log; pictures and scores go into FILE.pictures/."
        ),
    ] = Path("pictures.jsonl"),
    renderer: options.DataRenderer = None,
    renders: options.Renders = 4,
    reward: options.Rewards = None,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    *,
    drawing_options: dict[str, Any],
) -> None:
    """Draw and score the pictures that PRIP learns from.

    A folder as SOURCE is one of DiffusionDB, or holds pictures with captions; its
    pictures are scored only.

    Each line of FILE is JSON: "prompt", what a user types; "system", the prompt
    that drew the picture, where it is another; "image", its path from FILE's
    folder; "scores". Called again, the command goes on where it stopped.
    """
    from ...factory import (
        DEFAULT_JUDGE,
        DEFAULT_RENDERER,
        check_renderer,
        open_renderer,
        open_rewards,
        parse_weights,
        renderer_settings,
    )
    from ...training.prip.make_data import make_log
    from ...training.rollouts.picture_log import read_source
    from .. import terminal

    name = renderer or DEFAULT_RENDERER
    drawing = renderer_settings(name, steps, **drawing_options)
    able = check_renderer(drawing).capabilities
    records, judge_prompts = read_source(source)
    drawn = all(record.image is not None for record in records)
    if drawn and (renderer is not None or steps is not None or drawing_options):
        raise BadInput(f"all of {source} is drawn already; leave out --renderer, its options and --steps")
    if not reward and (drawn or not able.shapeworld):
        raise BadInput(
            "say what scores these pictures with --reward; the embedded judge reads ShapeWorld pictures only"
        )
    weights = parse_weights(reward or [DEFAULT_JUDGE])
    if set(weights.values()) != {1.0}:
        raise BadInput("a log keeps each reward's scores; give the weights to the training that reads it")
    claimed = checks.claim_file_with_pictures(source, out, "data pictures")
    with claimed, terminal.quiet_stdout(as_json), terminal.stage_progress() as start:
        tell = start(source)
        with terminal.keeping(f"{out}.pictures"):
            made = make_log(
                out,
                records,
                partial(open_renderer, drawing),
                open_rewards(weights),
                renders=renders,
                seed=seed,
                at_once=AT_ONCE,
                overlap=able.elsewhere,
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
