"""`reprise data judge`: questions about pictures, with answers, that `reprise train judge` reads."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ...core.errors import BadInput
from .. import checks, options
from ..renderer_options import renderer_options

AT_ONCE = 32  # pictures drawn, judged and kept before the next


@renderer_options
def judge(
    source: options.PictureSource,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", parser=options.path, help="The examples; what was drawn goes into FILE.pictures/."
        ),
    ] = Path("judge.jsonl"),
    renderer: options.DataRenderer = None,
    steps: options.Steps = None,
    renders: options.Renders = 8,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", show_default="shapeworld", help="The reward that says whether a picture is right."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            show_default="the middle of a range of 0 to 1",
            help="A picture with a higher score is right.",
        ),
    ] = None,
    look: Annotated[
        list[int] | None,
        typer.Option(
            metavar="STEP",
            show_default="six of them",
            help="Keep the previews after this step; may be given several times.",
        ),
    ] = None,
    alike: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            callback=options.between(0, 1),
            help="A preview is clear if it has the finished picture's label and its correlation with that "
            "picture is at least this.",
        ),
    ] = 0.9,
    test_share: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            callback=options.between(0, 1),
            help="Share of the prompts held out for figures; 1: all.",
        ),
    ] = 0.1,
    calibration_share: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            callback=options.between(0, 1),
            help="Share of the prompts held out for calibration.",
        ),
    ] = 0.1,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="With shapeworld:N, take the prompts that no training sees, all of them for figures.",
        ),
    ] = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    *,
    drawing_options: dict[str, Any],
) -> None:
    """Draw pictures and previews, and label them for a judge to learn from.

    A folder as SOURCE holds runs of `reprise render`. Pictures that exist give
    the questions match and critique only; so does a ComfyUI server, which gives
    no previews.

    Each line of FILE is JSON: "prompt"; "question", one of match, clarity,
    potential and critique; "image"; "label", yes or no, or "text", a reason;
    "step" of a preview; "split" by prompt: train, calibration, test. Of the
    training answers half are yes and half are no. Called again, the command goes
    on where it stopped; other thresholds and shares draw nothing again.
    """
    from ...factory import (
        DEFAULT_JUDGE,
        DEFAULT_RENDERER,
        check_renderer,
        open_renderer,
        open_reward,
        parse_reward,
        renderer_settings,
    )
    from ...training.judge.make_data import Labels, make_data, read_sources
    from .. import terminal

    name = renderer or DEFAULT_RENDERER
    if test_share + calibration_share > 1:
        raise BadInput("--test-share and --calibration-share are more than 1 together; lower one")
    if held_out:
        if not source.startswith("shapeworld:"):
            raise BadInput(f"--held-out needs shapeworld:N, got {source}; give --test-share 1 instead")
        test_share, calibration_share = 1.0, 0.0
    drawing = renderer_settings(name, steps, **drawing_options)
    able = check_renderer(drawing).capabilities
    if look and not able.previews:
        raise BadInput("a ComfyUI server gives no previews; leave out --look")
    sources = read_sources(source, renders, seed, "held-out" if held_out else "train")
    drawn = all(one.load is not None for one in sources)
    if drawn and (renderer is not None or steps is not None or look or drawing_options):
        raise BadInput(
            f"all of {source} is drawn already; leave out --renderer, its options, --steps and --look"
        )
    if reward is None and not able.shapeworld:
        raise BadInput(
            "name what labels these pictures with --reward; the embedded detector reads ShapeWorld "
            "pictures only"
        )
    judging = open_reward(parse_reward(reward or DEFAULT_JUDGE))
    spec = judging.spec
    if threshold is None and (spec.low, spec.high) != (0.0, 1.0):
        raise BadInput(
            f"scores of {spec.name} are usually {spec.low:g} to {spec.high:g}; give --threshold, the score "
            "that a right picture exceeds"
        )
    labels = Labels(
        0.5 if threshold is None else threshold, spec.higher_is_better, alike, test_share, calibration_share
    )
    claimed = checks.claim_file_with_pictures(source, out, "data judge")
    with claimed, terminal.quiet_stdout(as_json), terminal.stage_progress() as start:
        tell = start(source)
        with terminal.keeping(f"{out}.pictures"):
            made = make_data(
                out,
                sources,
                partial(open_renderer, drawing),
                judging,
                labels,
                looks=look if able.previews else [],
                at_once=AT_ONCE,
                made_by={
                    "renderer": None if drawn else name,
                    "steps": steps,
                    **drawing_options,
                },
                progress=lambda done, of: tell("draw", done, of),
            )
    if as_json:
        terminal.print_json(made)
        return
    rows = [(*where.split("/"), count) for where, count in made["examples"].items()]
    terminal.print_table(None, ("split", "question", "examples"), rows, numbers=("examples",))
    terminal.out().print(
        f"[bold]{made['file']}[/bold]: of {made['pictures']} pictures of {made['prompts']} "
        f"prompts, {made['right']:.0%} right; {made['left_out']} answers left out, so that "
        "there is as much yes as no to train on",
        soft_wrap=True,
    )
