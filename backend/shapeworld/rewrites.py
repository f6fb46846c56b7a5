"""(prompt, reason, rewrite) examples made from templates, to train a rewriter.

They replace RePrompt's 8,000 GPT-4 examples (arXiv 2505.17540, SFT stage). The reason describes the scene in
a few short sentences; the rewrite spells out a plausible layout. Layouts satisfy the prompt and are otherwise
random; they do not depend on what the renderer draws well.

Only combinations of the train split are used, also in paraphrases and in the few richer prompts (coloured
counts, three things), which users write and the six tasks do not have.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .captions import NUMBERS, article, join_list, loose_caption, place_phrase, plural, spelled_out
from .paraphrases import FRAMES, paraphrase, requirements_phrase, richer_case, train_case
from .prompts import PromptCase, Requirement, sample_layout
from .read_back import read_back
from .scenes import COLORS, GROUNDS, PLACES, SHAPES, Scene, Thing

CRITIQUE_SHARE = 0.3
RICHER_SHARE = 0.15
FOREIGN_SHARE = 0.05
# Things that are not ShapeWorld's shapes: a rewriter must keep such words.
_FOREIGN = """
cat dog house tree car boat bird fish flower cup book chair table lamp apple banana horse sheep bus
train bicycle clock vase pizza cake cloud mountain river bridge tower robot dragon guitar piano hat
shoe key door window lion tiger bear rabbit owl butterfly lighthouse castle candle umbrella kite
""".split()


@dataclass(frozen=True)
class RewriteTriple:
    """One example. `critique` is about an earlier picture; `case` is None for things that are no shapes."""

    prompt: str
    reason: str
    rewrite: str
    critique: str | None = None
    case: PromptCase | None = None

    def row(self) -> dict[str, str]:
        """The example as a line of an SFT file (`reprise train sft`)."""
        row = {"prompt": self.prompt, "reason": self.reason, "rewrite": self.rewrite}
        return row if self.critique is None else {**row, "critique": self.critique}


def triples(count: int, seed: int = 0) -> Iterator[RewriteTriple]:
    """`count` examples from combinations of the train split; equal seeds give equal examples."""
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.random()
        if kind < FOREIGN_SHARE:
            yield _foreign(rng)
            continue
        mend = rng.random() < CRITIQUE_SHARE
        if kind < FOREIGN_SHARE + RICHER_SHARE:
            case = richer_case(rng)
        elif mend and rng.random() < 0.4:
            # A critique may name a third colour, and keeping three colours apart is hard.
            case = train_case(rng, "color_attribution")
        else:
            case = train_case(rng)
        if rng.random() < 0.5:
            case = replace(case, prompt=paraphrase(case, rng))
        yield make_triple(case, rng, mend)


def generic_rewrites(count: int, seed: int = 0) -> Iterator[RewriteTriple]:
    """`count` rewrites as a general language model without tuning might write them.

    Nearly half of them add decorations, as such models do; a third are loose; one in five spells out a layout
    that ignores relations.
    """
    rng = random.Random(seed)
    for _ in range(count):
        case = richer_case(rng) if rng.random() < RICHER_SHARE else train_case(rng)
        if rng.random() < 0.5:
            case = replace(case, prompt=paraphrase(case, rng))
        unrelated = replace(case, include=tuple(replace(need, position=None) for need in case.include))
        kind = rng.random()
        if kind < 0.2:
            yield replace(make_triple(unrelated, rng), case=case)
        elif kind < 0.55:
            said = loose_caption(sample_layout(unrelated, rng), rng)
            yield RewriteTriple(
                case.prompt, f"{_request_sentence(case, rng)} {rng.choice(_INTENTIONS)}", said, case=case
            )
        else:
            ground = f" on {article(case.ground)} {case.ground} background" if case.ground else ""
            said = f"{rng.choice(_OPENINGS)} {requirements_phrase(case.include)}{ground}"
            said = ", ".join([said, *rng.sample(_DECORATIONS, rng.randint(1, 3))])
            yield RewriteTriple(
                case.prompt, f"{_request_sentence(case, rng)} {rng.choice(_INTENTIONS)}", said, case=case
            )


_OPENINGS = ("a beautiful photo of", "a vivid picture of", "a minimalist image of", "a clean render of")
_DECORATIONS = ("vivid colors", "sharp edges", "soft light", "simple composition", "high detail")
_INTENTIONS = (
    "Bold colors and a clear composition help.",
    "It should look clean and sharp.",
    "A simple scene is best.",
    "Soft light makes it pleasant.",
)


def make_triple(case: PromptCase, rng: random.Random, with_critique: bool = False) -> RewriteTriple:
    """One example for `case`; `with_critique`: one that answers a critique, with large things only."""
    like = len(case.include) == 1 and case.include[0].count > 1
    size = (
        "large" if with_critique or rng.random() < 0.6 else rng.choice(("small", "large")) if like else None
    )
    scene = _in_prompt_order(case, sample_layout(case, rng, size))
    critique, opening = _critique(case, rng) if with_critique else (None, None)
    reason = " ".join(
        [
            opening or _request_sentence(case, rng),
            _layout_sentence(case, scene, rng),
            _ground_sentence(case, scene, rng),
        ]
    )
    return RewriteTriple(case.prompt, reason, _caption_in_order(scene, rng), critique, case)


def _in_prompt_order(case: PromptCase, scene: Scene) -> Scene:
    """The scene with its things in the order of the prompt, equal things from top left to bottom right.

    A relation names its second requirement first.
    """
    things: list[Thing] = []
    for need in case.include[::-1] if case.include[-1].position else case.include:
        like = [t for t in scene.things if t.shape == need.shape and need.color in (None, t.color)]
        things += sorted(like, key=lambda t: PLACES.index(t.place))
    assert len(things) == len(scene.things)
    return replace(scene, things=tuple(things))


def _caption_in_order(scene: Scene, rng: random.Random) -> str:
    """A spelled-out caption that names the things in the scene's order.

    Captions are shuffled; this one is sampled until the order fits. Prompt, reason and rewrite then have the
    same order, which a small model learns faster.
    """
    wanted = [(t.color, t.shape, t.place) for t in scene.things]
    while True:
        text = spelled_out(scene, rng)
        found = read_back(text)
        assert found is not None, text
        if [(t.color, t.shape, t.place) for t in found.things] == wanted:
            return text


def _request_sentence(case: PromptCase, rng: random.Random) -> str:
    said = requirements_phrase(case.include)
    return rng.choice(
        (
            "The picture needs {}.",
            "Asked for: {}.",
            "The user wants {}.",
            "It should show {} and nothing else.",
        )
    ).format(said)


def _layout_sentence(case: PromptCase, scene: Scene, rng: random.Random) -> str:
    """A sentence that says where each thing goes, and that the relation holds or nothing overlaps."""
    things = scene.things
    kinds: dict[tuple[str, str], list[str]] = {}
    for thing in things:
        kinds.setdefault((thing.color, thing.shape), []).append(place_phrase(thing.place))
    if len(kinds) == 1 and len(things) > 1:
        where = join_list([f"one {place_phrase(t.place)}" for t in things])
        number = "both" if len(things) == 2 else f"all {NUMBERS[len(things)]}"
        text = f"{number} are {things[0].color}: {where}"
    else:
        text = join_list(
            [
                f"the {color} {shape} goes {places[0]}"
                if len(places) == 1
                else f"the {NUMBERS[len(places)]} {color} {plural(shape)} go {', '.join(places)}"
                for (color, shape), places in kinds.items()
            ]
        )
    text = text[0].upper() + text[1:]
    if len(case.include) == 2 and case.include[1].position:
        a, b = case.include[1].shape, case.include[0].shape
        return f"{text}, so the {a} is {case.include[1].position[0]} the {b}."
    if len(things) == 1:
        return text + "."
    return text + rng.choice((".", ", so nothing overlaps.", ", each with room of its own."))


def _ground_sentence(case: PromptCase, scene: Scene, rng: random.Random) -> str:
    if case.ground:
        return f"The background is {scene.ground}, as asked."
    said = rng.choice(("A plain {} background keeps it clear.", "The background can be {}."))
    return said.format(scene.ground)


def _critique(case: PromptCase, rng: random.Random) -> tuple[str, str]:
    """(critique with one to three faults in the judge's wording, the reason's answer to them)."""
    faults = [_fault(case, need, rng) for need in rng.sample(case.include, rng.randint(1, len(case.include)))]
    if case.ground and rng.random() < 0.3:
        other = rng.choice([g for g in GROUNDS if g != case.ground])
        mend = f"the background must be {case.ground}"
        faults.append((f"the background is {other}, not {case.ground}", mend))
    if rng.random() < 0.15:
        extra = f"{rng.choice(tuple(COLORS))} {rng.choice(SHAPES)}"
        faults.append((f"there is {article(extra)} {extra} that was not asked for", f"no {extra} this time"))
    said = rng.choice(("; ", "; ", ", ", ". ")).join(fault for fault, _ in faults)
    said = said[0].upper() + said[1:] if rng.random() < 0.5 else said
    mended = join_list([mend for _, mend in faults])
    return said + ("." if rng.random() < 0.6 else ""), f"{mended[0].upper()}{mended[1:]}."


def _fault(case: PromptCase, need: Requirement, rng: random.Random) -> tuple[str, str]:
    """(fault, the reason's answer to it) about one requirement."""
    name = f"{need.color} {need.shape}" if need.color else need.shape
    names = f"{need.color} {plural(need.shape)}" if need.color else plural(need.shape)
    choices = []
    seen = rng.choice([n for n in (0, 1, 2, 3, 4, 5, 6) if n != need.count])
    if need.count > 1:
        choices += [
            (
                f"I see {seen or 'no'} {name if seen == 1 else names}, {need.count} were asked for",
                f"there must be exactly {NUMBERS[need.count]} {names}",
            )
        ] * 4
        choices += [
            (
                f"there is 1 {name}, not {need.count}"
                if seen == 1
                else f"there are {seen or 'no'} {names}, not {need.count}",
                f"there must be exactly {NUMBERS[need.count]} {names}",
            )
        ]
    elif seen > 1:
        choices += [(f"I see {seen} {names}, 1 was asked for", f"there must be only one {name}")]
    missing = f"there is no {name}" if need.count == 1 else f"there are no {names}"
    choices += [(missing, f"the {name if need.count == 1 else names} must be there")]
    if need.color:
        other = rng.choice([color for color in COLORS if color != need.color])
        verb, noun = ("is", need.shape) if need.count == 1 else ("are", plural(need.shape))
        choices += [(f"the {noun} {verb} {other}, not {need.color}", f"the {noun} must be {need.color}")] * 2
    if need.position:
        relation, other = need.position[0], case.include[need.position[1]]
        target = f"{other.color} {other.shape}" if other.color else other.shape
        text = f"{relation} the {target}"
        choices += [(f"the {name} is not {text}", f"the {name} has to be clearly {text}")] * 3
    return rng.choice(choices)


def _foreign(rng: random.Random) -> RewriteTriple:
    if rng.random() < 0.7:
        word = rng.choice(_FOREIGN)
    else:
        word = "".join(rng.choices("abcdefghilmnoprstuvy", k=rng.randint(3, 8)))
    color = rng.choice(tuple(COLORS)) if rng.random() < 0.4 else None
    thing = f"{color} {word}" if color else word
    ground = rng.choice(tuple(GROUNDS))
    place = "center" if rng.random() < 0.6 else rng.choice(PLACES)
    asked = f"{article(thing)} {thing}"
    return RewriteTriple(
        rng.choice(FRAMES).format(asked),
        f"The picture needs {asked}. It goes {place_phrase(place)}. The background can be {ground}.",
        f"a large {thing} {place_phrase(place, rng)}, on {article(ground)} {ground} background",
    )
