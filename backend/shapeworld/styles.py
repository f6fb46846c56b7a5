"""Styles of ShapeWorld's pictures: palettes, outlines, backgrounds and textures, their words in prompts, and
which of them this world's people prefer.

Plain pictures have no style. Of the embedded renderers, only those whose names end in "-styled" draw styles,
if the prompt names them.
"""

from __future__ import annotations

import random
from dataclasses import astuple, dataclass, fields

from .captions import join_list, loose_caption, place_phrase, plural, spelled_out
from .prompts import PromptCase
from .scenes import COLORS, Scene

# The styles of each facet; a picture has at most one per facet.
FACETS: dict[str, tuple[str, ...]] = {
    "palette": ("pastel", "dark"),
    "outline": ("outlined", "shadowed"),
    "background": ("framed", "dotted"),
    "texture": ("glossy",),
}
STYLE_WORDS = tuple(word for words in FACETS.values() for word in words)
NO_STYLE_SHARE = 0.35  # share of random pictures without a style of a given facet
UNNAMED_SHARE = 0.1  # share of a random picture's styles that its caption leaves out
ROUND = ("circle", "ring", "heart")
# The value that a palette's colours are blended with, and its share.
_PALETTE_BLENDS = {"pastel": (255, 0.35), "dark": (0, 0.4)}


@dataclass(frozen=True)
class Style:
    """A style: one word per facet of `FACETS`, or None."""

    palette: str | None = None
    outline: str | None = None
    background: str | None = None
    texture: str | None = None

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(word for word in astuple(self) if word)

    def agreement(self, other: Style) -> float:
        """Share of the facets in which two styles are equal, 0..1."""
        same = [a == b for a, b in zip(astuple(self), astuple(other), strict=True)]
        return sum(same) / len(same)


PLAIN_STYLE = Style()


def parse_style(text: str) -> Style:
    """The style that a prompt names. Of several words of one facet the last one counts."""
    words = text.lower().replace(",", " ").replace(".", " ").split()
    facet = {word: name for name, choices in FACETS.items() for word in choices}
    return Style(**{facet[word]: word for word in words if word in facet})


def random_style(rng: random.Random) -> Style:
    chosen = {}
    for facet, words in FACETS.items():
        chosen[facet] = None if rng.random() < NO_STYLE_SHARE else rng.choice(words)
    return Style(**chosen)


def preferred_style(case: PromptCase) -> Style:
    """The style that this world's people prefer for a prompt.

    Pastel if the first shape is round, dark if it has corners. Outlines if a colour other than black is named
    (dark lines do not show around black), else shadows. A frame around a single thing, dots behind several.
    Gloss always.
    """
    first = case.include[0]
    return Style(
        palette="pastel" if first.shape in ROUND else "dark",
        outline="outlined" if any(need.color not in (None, "black") for need in case.include) else "shadowed",
        background="framed" if sum(need.count for need in case.include) == 1 else "dotted",
        texture="glossy",
    )


def palette_colors(palette: str | None) -> dict[str, tuple[int, int, int]]:
    """{name: RGB} of the things' colours in a palette; None is the plain palette."""
    if palette is None:
        return COLORS
    end, share = _PALETTE_BLENDS[palette]
    mixed = {}
    for name, color in COLORS.items():
        red, green, blue = (round(value + (end - value) * share) for value in color)
        mixed[name] = (red, green, blue)
    return mixed


# Captions


def detailed_prompt(prompt: str, scene: Scene, style: Style, rng: random.Random | None = None) -> str:
    """A prompt as practised users write it: the prompt, the place of each thing, and styles, with commas."""
    things, words = list(scene.things), list(style.words)
    if rng is not None:
        rng.shuffle(things)
        rng.shuffle(words)
    kinds = {thing.shape for thing in things}
    where = [
        f"{thing.shape if len(kinds) > 1 else 'one'} {place_phrase(thing.place, rng)}" for thing in things
    ]
    if len(things) == 1:
        where = [place_phrase(things[0].place, rng)]
    return ", ".join([prompt, *where, *words])


def styled_caption(scene: Scene, style: Style, rng: random.Random) -> str:
    """A caption from the styled renderers' training distribution. One in twelve is empty, for guidance."""
    kind = rng.random()
    if kind < 1 / 12:
        return ""
    named = Style(
        **{
            facet.name: None if rng.random() < UNNAMED_SHARE else getattr(style, facet.name)
            for facet in fields(style)
        }
    )
    if kind < 0.5:
        return detailed_prompt(short_prompt(scene, rng), scene, named, rng)
    text = loose_caption(scene, rng) if kind < 0.62 else spelled_out(scene, rng)
    words = list(named.words)
    rng.shuffle(words)
    return ", ".join([text, *words])


def short_prompt(scene: Scene, rng: random.Random) -> str:
    """A short prompt that a scene satisfies, in the wording of `prompts`."""
    counts: dict[tuple[str, str], int] = {}
    for thing in scene.things:
        counts[thing.color, thing.shape] = counts.get((thing.color, thing.shape), 0) + 1
    parts = []
    for (color, shape), number in counts.items():
        words = [color] if rng.random() < 0.5 else []
        if number == 1:
            parts.append(" ".join(["an" if words and color == "orange" else "a", *words, shape]))
        else:
            parts.append(" ".join([("one", "two", "three", "four")[number - 1], *words, plural(shape)]))
    text = "a photo of " + join_list(parts)
    return f"{text} on a {scene.ground} background" if rng.random() < 0.6 else text
