"""Arguments and options that several commands share, so that they read and behave alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import BadInput, UnknownName, Unsupported
from ..core.types import SEED_RANGE

Prompts = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT…", show_default=False, help="What the picture shows, in quotes."),
]
PromptFile = Annotated[
    Path | None, typer.Option("--prompts", metavar="FILE", help="A UTF-8 text file with one prompt a line.")
]
Rewriter = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default="reprompt",
        help="reprompt or prip (embedded), template, none, a folder of weights, prip:FOLDER, "
        "promptist:FOLDER, or chat:MODEL@URL (OpenAI-compatible; a key comes from "
        "REPRISE_ENDPOINT_KEY).",
    ),
]
Renderer = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="shapeworld (an embedded FLUX), shapeworld-sd (Stable Diffusion) or "
        "shapeworld-masked (aMUSEd), a diffusers folder or Hugging Face name, or "
        "comfyui:WORKFLOW.json@URL (saved in API format; several servers with commas).",
    ),
]
Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="NAME",
        show_default="shapeworld",
        help="Once or several times; vlm:FOLDER or vlm:MODEL@URL asks a vision-language model.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, nothing else.")]
Steps = Annotated[int | None, typer.Option(show_default="the renderer's own", help="Denoising steps.")]

PRUNING = "none|halving|potential[:P]"

CORRECTIONS = ("draw-again", "image-to-image")

Correction = Annotated[
    str,
    typer.Option(
        metavar="|".join(CORRECTIONS),
        help="How a round mends: a new picture from the mended "
        "prompt, or that drawn over the best one so far.",
    ),
]
Strength = Annotated[
    float, typer.Option(metavar="SHARE", help="How much image-to-image may change: 1 keeps nothing.")
]


def prepare_pictured(source: str, out: Path) -> None:
    """Make the folder of `out`, whose pictures go into `out`.pictures beside it. Raises BadInput for an `out`
    that is the source, or that another command made."""
    from ..storage.files import prepare_folder

    if out.is_dir() or (out.exists() and not out.with_name(f"{out.name}.pictures").is_dir()):
        raise BadInput(f"{out} was not made by this command; give another --out")
    if Path(source).absolute() == out.absolute():
        raise BadInput(f"SOURCE and --out are both {out}; give two files")
    prepare_folder(out.absolute().parent)


def check_seed(seed: int, candidates: int = 1) -> None:
    """Raises BadInput where one of `candidates` seeds from `seed` on is out of range."""
    last = SEED_RANGE - candidates
    if not 0 <= seed <= last:
        drawn = f" for {candidates} candidates" if candidates > 1 else ""
        raise BadInput(f"--seed must be 0 to {last}{drawn}, got {seed}")


def correction_named(name: str) -> str:
    """What search and record call it. Raises UnknownName."""
    if name not in CORRECTIONS:
        raise UnknownName("correction", name, CORRECTIONS)
    return name.replace("-", " ")


def check_reflect(rounds: int) -> None:
    if not 0 <= rounds <= 100:
        raise BadInput(f"--reflect must be 0 to 100 rounds, got {rounds}")


def choose_prune(prune: str | None, renderer: str) -> str:
    """The pruning asked for; by default halving, or none with a ComfyUI server, which gives no previews.

    Raises UnknownName for a name that is none, Unsupported for pruning without previews.
    """
    previews = not renderer.startswith("comfyui:")
    prune = prune or ("halving" if previews else "none")
    from ..search.pruning import read_pruning

    read_pruning(prune)
    if prune != "none" and not previews:
        raise Unsupported(
            f"--prune {prune} needs previews, which a ComfyUI server does not give; take "
            "--prune none, or a PARM Best-of-N node in the workflow"
        )
    return prune


def parse_methods(words: Sequence[str]) -> dict[str, list[str]]:
    """["NAME=REWRITER,REWRITER", …] -> {NAME: [REWRITER, …]}: rows of a comparison. Raises BadInput."""
    methods: dict[str, list[str]] = {}
    for word in words:
        name, _, given = (part.strip() for part in word.partition("="))
        rewriters = [one.strip() for one in given.split(",")]
        if not (name and all(rewriters)):
            raise BadInput(
                f"--compare {word!r}: expected NAME=REWRITER, or NAME=REWRITER,REWRITER,… for "
                "several training seeds; a rewriter is a folder, or a name that --rewriter knows"
            )
        if name in methods:
            raise BadInput(f"--compare {name!r} is given twice; name each row once, with all its rewriters")
        methods[name] = rewriters
    return methods
