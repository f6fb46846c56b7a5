"""`reprise score`: what rewards say of pictures that are there already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BadInput
from . import options
from .prompts import check_prompt

if TYPE_CHECKING:
    from torch import Tensor


def read_picture(path: Path) -> Tensor:
    """A picture file as (H, W, 3) in 0..1. Grey becomes RGB, what is transparent lies on white, a
    camera's rotation is undone. Raises BadInput for a file that is no picture."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    if path.is_dir():
        raise BadInput(f"{path} is a folder; name picture files")
    try:
        with Image.open(path) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
    except FileNotFoundError as error:
        raise BadInput(f"there is no picture {path}") from error
    except UnidentifiedImageError as error:
        raise BadInput(f"{path} is no picture that can be read (PNG, JPEG, WebP, …)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path} is damaged: {error}") from error
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it
        grey = np.clip(np.asarray(picture, dtype=np.float32) / 65535, 0, 1)
        return torch.from_numpy(np.repeat(grey[..., None], 3, axis=2))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)


def score(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE…", show_default=False, help="Picture files.")
    ],
    prompt: Annotated[str, typer.Option(help="What the pictures should show: the user's own prompt.")],
    names: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="NAME", show_default="shapeworld", help="Once or several times."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Score pictures against a prompt, each by itself. --json prints an array, one object per picture."""
    from ..judging import image_scores
    from . import terminal
    from .roles import DEFAULT_JUDGE, make_reward

    text = check_prompt(prompt, "--prompt")
    names = list(dict.fromkeys(names or [DEFAULT_JUDGE]))
    with terminal.quiet_stdout(as_json):
        rewards = {name: make_reward(name) for name in names}
        rows = []
        for path in images:
            picture = read_picture(path)[None]
            scores = {name: image_scores(reward, picture, [text])[0] for name, reward in rewards.items()}
            rows.append((str(path), scores))
    if as_json:
        terminal.print_json([{"image": path, "prompt": text, "scores": scores} for path, scores in rows])
        return
    table = [(path, *(f"{scores[name]:.4f}" for name in names)) for path, scores in rows]
    terminal.print_table(None, ("image", *names), table, numbers=names)
