"""`reprise judge-data`: questions about pictures, with answers, that `reprise train judge` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import BadInput
from . import options

AT_ONCE = 32  # pictures drawn, judged and kept before the next


def judge_data(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="What to draw: a file with a prompt a "
            'line, shapeworld:N, or JSON lines {"prompt": …, "system": what draws it}. Or what is '
            'drawn, for match and critique alone: such lines with an "image", or a folder of '
            "runs of `reprise render`.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The examples; what was drawn goes into FILE.pictures/.")
    ] = Path("judge.jsonl"),
    renderer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="shapeworld",
            help="What draws, as for `reprise render`; "
            "a ComfyUI server gives no previews, and so no clarity and potential.",
        ),
    ] = None,
    renders: Annotated[
        int, typer.Option(metavar="N", help="Pictures of each prompt, each from a seed of its own.")
    ] = 8,
    reward: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="shapeworld", help="What says whether a picture is right."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            show_default="the middle of a range of 0 to 1",
            help="What a right picture's score is above.",
        ),
    ] = None,
    look: Annotated[
        list[int] | None,
        typer.Option(
            metavar="STEP",
            show_default="six of them",
            help="After which steps previews are kept; may be given several times.",
        ),
    ] = None,
    alike: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="A preview is clear where it has the finished picture's label and "
            "correlates with it so much.",
        ),
    ] = 0.9,
    test_share: Annotated[
        float, typer.Option(metavar="SHARE", help="Prompts held out for figures; 1: all of them.")
    ] = 0.1,
    calibration_share: Annotated[
        float, typer.Option(metavar="SHARE", help="Prompts held out for calibrations.")
    ] = 0.1,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="Of shapeworld:N the prompts that nothing is trained on, all of them for figures.",
        ),
    ] = False,
    lora: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Added to the renderer: a judge should know what draws now."),
    ] = None,
    steps: options.Steps = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Draw pictures and previews, and label them for a judge to learn from.

    Each line of FILE is JSON: "prompt"; "question", one of match, clarity,
    potential and critique; "image"; "label", yes or no, or "text", a reason;
    "step" of a preview; "split" by prompt: train, calibration, test. There is as
    much yes as no to train on. Called again, it goes on where it was stopped; other
    thresholds and shares draw nothing anew.
    """
    from ..factory import DEFAULT_JUDGE, DEFAULT_RENDERER, EMBEDDED_WORLD, find_renderer, make_reward
    from ..training.judge.make_data import Labels, make_data, read_sources
    from . import terminal

    name = renderer or DEFAULT_RENDERER
    if not 1 <= renders <= 256:
        raise BadInput(f"--renders must be 1 to 256, got {renders}")
    options.check_seed(seed)
    for option, value in (
        ("test-share", test_share),
        ("calibration-share", calibration_share),
        ("alike", alike),
    ):
        if not 0 <= value <= 1:
            raise BadInput(f"--{option} must be 0 to 1, got {value:g}")
    if test_share + calibration_share > 1:
        raise BadInput("--test-share and --calibration-share are more than 1 together; lower one")
    if held_out:
        if not source.startswith("shapeworld:"):
            raise BadInput(f"--held-out is of shapeworld:N, got {source}; give --test-share 1 instead")
        test_share, calibration_share = 1.0, 0.0
    find = find_renderer(name, steps, lora=lora)
    previews = not name.startswith("comfyui:")
    if look and not previews:
        raise BadInput("a ComfyUI server gives no previews; leave --look out")
    sources = read_sources(source, renders, seed, "held-out" if held_out else "train")
    drawn = all(one.load is not None for one in sources)
    if drawn and (renderer is not None or steps is not None or look or lora):
        raise BadInput(f"all of {source} is drawn already; leave --renderer, --lora, --steps and --look out")
    if reward is None and name not in EMBEDDED_WORLD:
        raise BadInput(
            "say what labels these pictures with --reward; the embedded detector reads ShapeWorld "
            "pictures only"
        )
    judging = make_reward(reward or DEFAULT_JUDGE)
    spec = judging.spec
    if threshold is None and (spec.low, spec.high) != (0.0, 1.0):
        raise BadInput(
            f"scores of {spec.name} are usually {spec.low:g} to {spec.high:g}; say what a right "
            "picture's is above with --threshold"
        )
    labels = Labels(
        0.5 if threshold is None else threshold, spec.higher_is_better, alike, test_share, calibration_share
    )
    options.prepare_pictured(source, out)
    with terminal.quiet_stdout(as_json), terminal.stage_progress() as start:
        tell = start(source)
        with terminal.keeping(f"{out}.pictures"):
            made = make_data(
                out,
                sources,
                find,
                judging,
                labels,
                looks=look if previews else [],
                at_once=AT_ONCE,
                made_by={
                    "renderer": None if drawn else name,
                    "steps": steps,
                    **({"lora": str(lora)} if lora else {}),
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
