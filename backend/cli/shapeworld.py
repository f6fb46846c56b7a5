"""`reprise shapeworld`: the embedded world. Draw its scenes, read pictures back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import BadInput
from . import options

SCENES = "scenes.json"

app = typer.Typer(no_args_is_help=True, help="The embedded world: draw scenes, detect what pictures show.")


@app.command()
def draw(
    count: Annotated[
        int, typer.Argument(metavar="N", callback=options.between(1, 100_000), help="How many scenes.")
    ] = 8,
    out: Annotated[Path, typer.Option(metavar="DIR", parser=options.path, help="Where to write.")] = Path(
        "out/shapeworld"
    ),
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Draw random scenes with their captions: NNN.png and scenes.json."""
    import io
    import json
    import random

    from PIL import Image

    from ..shapeworld import captions, drawing, scenes
    from ..storage.outputs import check_made, claim, set_aside, write_made, write_new
    from . import terminal

    rng = random.Random(seed)
    made = [scenes.random_scene(rng) for _ in range(count)]
    rows = [
        {"image": f"{i:03d}.png", "caption": captions.spelled_out(scene), "scene": asdict(scene)}
        for i, scene in enumerate(made)
    ]
    text = json.dumps(rows, indent=1) + "\n"
    with claim(out, "shapeworld draw", [SCENES, *(row["image"] for row in rows)]):
        check_made(out, out / SCENES)
        if (out / SCENES).exists() and (out / SCENES).read_text(encoding="utf-8") != text:
            earlier = [row["image"] for row in json.loads((out / SCENES).read_text(encoding="utf-8"))]
            terminal.note(f"other scenes were there; they are kept in {set_aside(out, (*earlier, SCENES))}")
        for row, scene in zip(rows, made, strict=True):
            png = io.BytesIO()
            Image.fromarray(drawing.draw(scene)).save(png, "PNG")
            write_new(out / row["image"], png.getvalue())
        write_made(out, out / SCENES, text)
    if as_json:
        terminal.print_json(rows)
    else:
        terminal.print_table(None, ("image", "caption"), [(r["image"], r["caption"]) for r in rows])
        terminal.out().print(f"in [bold]{out}[/bold]", soft_wrap=True)


@app.command()
def detect(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE…", show_default=False, help="Picture files.")
    ] = None,
    measure: Annotated[
        int,
        typer.Option(
            metavar="N",
            callback=options.between(0, 1_000_000),
            help="Instead: the detector's accuracy on N random scenes.",
        ),
    ] = 0,
    seed: options.Seed = 0,
    styled: Annotated[
        bool, typer.Option("--styled", help="Detect styles, too: palette, outline, background, texture.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Say which things pictures show and where, or measure how often that is right."""
    from . import terminal

    if measure:
        _measure(measure, seed, styled, as_json)
        return
    if not images:
        raise BadInput("no picture given; name picture files, or give --measure N")
    from ..shapeworld.detector import read_scene
    from ..shapeworld.style_detector import read_styled
    from ..shapeworld.styles import PLAIN_STYLE
    from ..storage.images import read_picture

    found = []
    for path in images:
        picture = (read_picture(path) * 255).round().byte().numpy()
        reading, style = read_styled(picture) if styled else (read_scene(picture), PLAIN_STYLE)
        found.append((str(path), reading, style))
    if as_json:
        terminal.print_json(
            [
                {
                    "image": path,
                    "ground": reading.ground,
                    "ground_confidence": float(reading.ground_confidence),
                    "detections": [d.as_dict() for d in reading.detections],
                    **({"style": asdict(style)} if styled else {}),
                }
                for path, reading, style in found
            ]
        )
        return
    rows = []
    for path, reading, style in found:
        rows.append((path, f"{reading.ground} background", "", "", f"{reading.ground_confidence:.2f}"))
        if styled:
            rows.append(("", ", ".join(style.words) or "plain", "", "", ""))
        for d in reading.detections:
            rows.append(("", f"{d.color} {d.shape}", d.size, d.place, f"{d.confidence:.2f}"))
    terminal.print_table(None, ("image", "thing", "size", "place", "confidence"), rows, ("confidence",))


def _measure(count: int, seed: int, styled: bool, as_json: bool) -> None:
    """Share of scenes of which everything, and nothing else, is detected: clean, noisy, blurred. With
    `styled`, of pictures in styles, each facet by itself too."""
    import random

    import numpy as np
    from scipy import ndimage

    from ..shapeworld import detector, drawing, scenes
    from ..shapeworld.style_detector import read_styled
    from ..shapeworld.styles import FACETS, PLAIN_STYLE, random_style
    from . import terminal

    rng, dice = random.Random(seed), np.random.default_rng(seed)
    kinds = ("clean", "noise, sigma 12 of 255", "blur, sigma 1 pixel")
    columns = ("all of a scene", *FACETS) if styled else ("all of a scene",)
    right = {kind: dict.fromkeys(columns, 0) for kind in kinds}
    for _ in range(count):
        scene = scenes.random_scene(rng)
        style = random_style(rng) if styled else PLAIN_STYLE
        clean = drawing.draw(scene, style)
        noisy = np.clip(clean + dice.normal(0, 12, clean.shape), 0, 255).round().astype(np.uint8)
        blurred = ndimage.gaussian_filter(clean, (1, 1, 0)).astype(np.uint8)
        for kind, picture in zip(kinds, (clean, noisy, blurred), strict=True):
            picture = np.ascontiguousarray(picture)
            reading, seen = read_styled(picture) if styled else (detector.read_scene(picture), PLAIN_STYLE)
            found = list(reading.detections)
            same = len(found) == len(scene.things) and reading.ground == scene.ground
            here = right[kind]
            here[columns[0]] += same and all(any(detector.matches(t, d) for d in found) for t in scene.things)
            for facet in columns[1:]:
                here[facet] += getattr(style, facet) == getattr(seen, facet)
    shares = {kind: {what: number / count for what, number in here.items()} for kind, here in right.items()}
    if as_json:
        plain = {kind: here[columns[0]] for kind, here in shares.items()}
        terminal.print_json({"scenes": count, "seed": seed, "right": shares if styled else plain})
    else:
        rows = [(kind, *(f"{share:.2%}" for share in here.values())) for kind, here in shares.items()]
        terminal.print_table(f"right, of {count} scenes", ("pictures", *columns), rows, columns)
