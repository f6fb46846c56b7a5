"""Arguments and options that several commands share, so that they read and behave alike.

Ranges of numbers are checked here; what depends on other options is checked in `checks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import BadInput
from ..core.types import SEED_RANGE


def between(low: float, high: float | None = None) -> Callable[[typer.CallbackParam, Any], Any]:
    """A callback that refuses numbers below `low`, above `high`, and NaN, and says what came."""

    def check(param: typer.CallbackParam, value: Any) -> Any:
        if value is not None and not low <= value <= (math.inf if high is None else high):
            wanted = f"at least {low}" if high is None else f"{low} to {high}"
            raise BadInput(f"{param.opts[0]} must be {wanted}, got {value}")
        return value

    return check


def path(text: str | Path) -> Path:
    """The parser of options that name a file or folder. An empty name would be the current folder."""
    if not str(text).strip():
        raise BadInput("an option that takes a file or folder got an empty name; name one, or leave it out")
    return Path(text)


seed_in_range = between(0, SEED_RANGE - 1)

PRUNING = "none|halving|potential[:P]"
CORRECTIONS = ("draw-again", "image-to-image")

# What is asked for
Prompts = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT…", show_default=False, help="What the picture shows, in quotes."),
]
PromptFile = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", parser=path, help="A UTF-8 text file with one prompt a line."),
]
Seed = Annotated[
    int,
    typer.Option(metavar="N", callback=seed_in_range, help="The same seed gives the same result."),
]

# What draws
Renderer = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="shapeworld (an embedded FLUX), shapeworld-sd (Stable Diffusion), "
        "shapeworld-masked (aMUSEd) or shapeworld-turbo (Chroma, in 4 steps), a diffusers folder or Hugging "
        "Face name, a single .safetensors or .gguf file, or comfyui:WORKFLOW@URL (a workflow, or a picture "
        "that ComfyUI saved; several servers with commas).",
    ),
]
DataRenderer = Annotated[
    str | None,
    typer.Option(
        "--renderer",
        metavar="NAME",
        show_default="shapeworld",
        help="What draws, named as for `reprise render`.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        metavar="N", callback=between(1, 1000), show_default="the renderer's own", help="Denoising steps."
    ),
]
BestOf = Annotated[
    int,
    typer.Option(
        "--best-of", metavar="N", callback=between(1, 4096), help="Candidates, each from its own seed."
    ),
]
Variants = Annotated[
    int,
    typer.Option(
        metavar="K", callback=between(1, 4096), help="Rewrites of a prompt; the candidates share them evenly."
    ),
]
Prune = Annotated[
    str | None,
    typer.Option(
        metavar=PRUNING,
        show_default="halving, or none without previews",
        help="How candidates without hope are stopped early.",
    ),
]
Reflect = Annotated[
    int | None,
    typer.Option(
        metavar="ROUNDS",
        callback=between(0, 100),
        show_default="1, or 0 with a judge that only scores",
        help="Rounds of mending at most; they end as soon as all is right.",
    ),
]
Correction = Annotated[
    str,
    typer.Option(
        metavar="|".join(CORRECTIONS),
        help="How a round mends: draw the mended prompt as a new picture, or over the best picture so far.",
    ),
]
Strength = Annotated[
    float,
    typer.Option(metavar="SHARE", help="How much image-to-image may change; 1 keeps nothing of the picture."),
]

# What rewrites
Rewriter = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default="reprompt",
        help="reprompt or prip (embedded), template, none, a folder of weights, prip:FOLDER, "
        "promptist:FOLDER, or chat:MODEL@URL (OpenAI-compatible; the key is read from "
        "REPRISE_ENDPOINT_KEY).",
    ),
]

# What judges
Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="NAME",
        show_default="shapeworld",
        help="What scores; may be given several times. vlm:FOLDER or vlm:MODEL@URL asks a "
        "vision-language model.",
    ),
]
WeightedRewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="NAME[=WEIGHT]",
        show_default=False,
        help="Score by a weighted mean; may be given several times.",
    ),
]

# Data to train on
PromptSource = Annotated[
    str,
    typer.Argument(
        metavar="PROMPTS",
        show_default=False,
        help='A file with a prompt a line, as text or JSON {"prompt": …, "judged_as": …}; or shapeworld:N.',
    ),
]
PictureSource = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        show_default=False,
        help="What to draw: a file with a prompt a line, shapeworld:N, or JSON lines "
        '{"prompt": …, "system": the prompt that is drawn}. Or pictures that exist: such lines with an '
        '"image", or a folder (see above).',
    ),
]
Renders = Annotated[
    int,
    typer.Option(
        metavar="N", callback=between(1, 256), help="Pictures of each prompt, each from its own seed."
    ),
]

# Measurements on ShapeWorld
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME",
        show_default="all",
        help="Only this task; may be given several times: "
        "single-object, two-object, counting, colors, position, color-attribution.",
    ),
]
PerTask = Annotated[
    int, typer.Option(metavar="N", callback=between(1), help="Held-out prompts of each task.")
]
Repetitions = Annotated[
    int,
    typer.Option(
        "--seeds", metavar="N", callback=between(1), help="Pictures of each prompt, each from its own seed."
    ),
]
MeasuringJudge = Annotated[
    str,
    typer.Option(
        "--judge", metavar="NAME", help="What measures: a row's figure is this reward's mean score."
    ),
]

ShowSettings = Annotated[
    bool,
    typer.Option("--settings", help="List all settings with their types, defaults and meanings, and stop."),
]

# What is written
Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", parser=path, show_default="a new one in out/", help="Where to write."),
]
ResultOut = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        parser=path,
        show_default="out/evaluate-NAME",
        help="Where to write; a stopped command goes on from there.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, nothing else.")]
