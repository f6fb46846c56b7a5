"""A small log of ShapeWorld: each prompt has pictures on several grounds, which their captions name, and a
judge that likes one of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image

from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.scenes import GROUNDS, Scene, place_thing

SHAPES = ("circle", "square", "star", "cross", "ring", "heart")
COLORS = ("red", "blue")


def make(folder: Path, grounds=tuple(GROUNDS), scored=True) -> Path:
    """The log of 12 prompts; pictures on beige score best."""
    rng, rows = random.Random(0), []
    (folder / "pictures").mkdir(parents=True)
    for shape in SHAPES:
        for color in COLORS:
            for ground in grounds:
                name = f"pictures/{color}-{shape}-{ground}.png"
                scene = Scene(ground, (place_thing(rng, shape, color, "center", "large"),))
                Image.fromarray(draw(scene)).save(folder / name)
                prompt = f"a {color} {shape}"
                row = {"prompt": prompt, "system": f"{prompt} on {ground} background", "image": name}
                if scored:
                    row["scores"] = {"shapeworld": 1.0 if ground == "beige" else 0.25}
                rows.append(row)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "log.jsonl"
