"""GenEval without its models: what a prompt asks for, and what detections say about it.

Source: GenEval (arXiv 2310.11513), github.com/djghosh13/geneval at af4902f: `prompts/create_prompts.py` (the
wording), `evaluation/object_names.txt`, and `evaluate` of `evaluation/evaluate_images.py`, whose verdicts
these are, line by line: of each class the surest detections above the threshold, no more than 16; colour and
position looked at on as many of the surest as were asked for; all included, nothing excluded. The offset
between two centres, less a margin, is divided by its own length BEFORE that margin (the ShapeWorld judge
divides by the length after it).
Departs from it: prompts may also be short ("two dogs"), give a number up to ten, join more than two things,
or combine colour, number and position; a class is asked for once; there is a soft score, and the reasons are
words for a rewriter.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...core.errors import BadInput, first_line
from ...shapeworld.prompts import RELATIONS

# COCO's classes in the detector's order, under GenEval's names.
CLASSES = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "computer mouse",
    "tv remote",
    "computer keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)
COCO_NAMES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
PLURALS = {
    "person": "people",
    "sheep": "sheep",
    "skis": "skis",
    "knife": "knives",
    "broccoli": "broccoli",
    "computer mouse": "computer mice",
    "mouse": "mice",
    "scissors": "scissors",
}
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

THRESHOLD = 0.3  # a detection counts above this confidence
COUNTING_THRESHOLD = 0.9  # and in the counting task above this one
MIN_CONFIDENCE = 0.1  # detections above this one still earn a part of the soft score
MAX_DETECTIONS = 16  # detections of a class that count
MARGIN = 0.1  # of the two boxes' summed sizes, taken off the offset of their centres
COMPONENT = 0.5  # what the wanted component of that offset must exceed
MIN_OFFSET = 1e-3  # pixels
WRONG_COLOR = 0.35  # credit for the right thing in a wrong colour


@dataclass(frozen=True)
class GenEvalRequirement:
    """One `include`: `count` things of a class, perhaps coloured, perhaps placed.

    `position` is (relation, index of the requirement before this one that it is relative to).
    """

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None

    def __str__(self) -> str:
        return f"{self.color} {self.name}" if self.color else self.name


@dataclass(frozen=True)
class GenEvalCase:
    """A prompt with what must be true of its picture: `exclude` are (class, number that is too many)."""

    prompt: str
    tag: str
    include: tuple[GenEvalRequirement, ...]
    exclude: tuple[tuple[str, int], ...] = ()

    @property
    def threshold(self) -> float:
        return COUNTING_THRESHOLD if self.tag == "counting" else THRESHOLD

    def metadata(self) -> dict[str, Any]:
        """A line of `evaluation_metadata.jsonl`."""
        out: dict[str, Any] = {"tag": self.tag, "include": []}
        for need in self.include:
            entry: dict[str, Any] = {"class": need.name, "count": need.count}
            if need.color:
                entry["color"] = need.color
            if need.position:
                entry["position"] = list(need.position)
            out["include"].append(entry)
        if self.exclude:
            out["exclude"] = [{"class": name, "count": count} for name, count in self.exclude]
        return {**out, "prompt": self.prompt}

    @classmethod
    def from_metadata(cls, line: Any) -> GenEvalCase:
        """The case of a line of `evaluation_metadata.jsonl`. Raises BadInput for one that is none."""
        try:
            needs = tuple(
                GenEvalRequirement(
                    _one_of(entry["class"], CLASSES),
                    _number(entry["count"]),
                    _one_of(entry["color"], COLORS) if "color" in entry else None,
                    _relative(entry["position"], i) if "position" in entry else None,
                )
                for i, entry in enumerate(line["include"])
            )
            exclude = tuple(
                (_one_of(entry["class"], CLASSES), _number(entry["count"]))
                for entry in line.get("exclude", [])
            )
            prompt, tag = str(line["prompt"]), str(line["tag"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            fault = f"no {error}" if isinstance(error, KeyError) else first_line(error)
            raise BadInput(
                f"expected a line of GenEval's metadata, with tag, include and prompt: {fault}"
            ) from error
        fault = _repeated(needs) if needs else "it includes nothing"
        if fault:
            raise BadInput(f"the metadata of {prompt[:80]!r} cannot be checked: {fault}")
        return cls(prompt, tag, needs, exclude)


def read_cases(path: Path) -> dict[str, GenEvalCase]:
    """{prompt: its case} from a file of GenEval's metadata, a JSON object a line. Raises BadInput."""
    cases: dict[str, GenEvalCase] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as GenEval's metadata: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            case = GenEvalCase.from_metadata(json.loads(line)) if line.strip() else None
        except (BadInput, ValueError) as error:
            raise BadInput(f"{path}, line {number}: {first_line(error)}") from error
        if case and cases.setdefault(case.prompt, case) != case:
            raise BadInput(f"{path}, line {number}: another line says something else of {case.prompt[:80]!r}")
    return cases


def _one_of(word: Any, known: Sequence[str]) -> str:
    if word not in known:
        raise ValueError(f"{word!r} is not one of {', '.join(known[:3])}, …")
    return word


def _number(count: Any) -> int:
    if type(count) is not int or count < 1:
        raise ValueError(f"a count is {count!r}, expected 1 or more")
    return count


def _relative(position: Any, own: int) -> tuple[str, int]:
    relation, index = position
    if type(index) is not int or not 0 <= index < own:
        raise ValueError(f"a position is relative to entry {index!r}, expected one before its own ({own})")
    return _one_of(relation, tuple(RELATIONS)), index


@dataclass(frozen=True)
class ObjectDetection:
    """One thing seen. `box` is (left, top, right, bottom) in pixels, the latter two outside it; `colors` the
    probability of each of COLORS, None where nobody looked."""

    name: str
    confidence: float
    box: tuple[float, float, float, float]
    colors: Mapping[str, float] | None = None

    @property
    def color(self) -> str:
        assert self.colors is not None, f"the colour of a {self.name} was asked for before it was looked at"
        return max(self.colors, key=self.colors.__getitem__)


def plural(name: str) -> str:
    if name in PLURALS:
        return PLURALS[name]
    return name + ("es" if name.endswith(("s", "ch", "sh")) else "s")


@cache
def _nouns() -> dict[str, tuple[str, bool]]:
    """How a class may be written -> (class, whether that says there are several)."""
    nouns: dict[str, tuple[str, bool]] = {}
    for written, name in [*((name, name) for name in CLASSES), *COCO_NAMES.items()]:
        # GenEval's own plural knows one rule: "benchs", "knifes", "skises".
        several = (plural(written), written + ("es" if written.endswith("s") else "s"))
        nouns |= {form: (name, True) for form in several}
    return nouns | {name: (name, False) for name in CLASSES} | {k: (v, False) for k, v in COCO_NAMES.items()}


@cache
def _thing() -> re.Pattern[str]:
    nouns = "|".join(map(re.escape, sorted(_nouns(), key=len, reverse=True)))
    numbers = "|".join(NUMBERS[1:])
    return re.compile(
        rf"(?:(?P<count>an?|the|{numbers}|[1-9]|10) )?(?:(?P<color>{'|'.join(COLORS)}) )?(?P<noun>{nouns})"
    )


_PREFIX = re.compile(r"^(?:an? )?(?:photo|photograph|picture|image) of ")
_RELATION = re.compile(
    r" (?:is )?(?:(?:(?:to|on) the )?(?P<side>left|right)(?: side)? of"
    r"|(?P<above>above|over)|(?P<below>below|under|underneath|beneath)) "
)
_AND = re.compile(r",? and |, ")


def parse_prompt(prompt: str) -> GenEvalCase:
    """What a prompt in GenEval's words asks for; `.metadata()` of GenEval's own prompts is GenEval's own.

    Raises BadInput for another one: the detector cannot check it.
    """
    text = _PREFIX.sub("", re.sub(r"\s+", " ", prompt).strip().lower().rstrip(" ."))
    relation = _RELATION.search(text)
    if relation:
        placed, other = (_read(part, prompt) for part in (text[: relation.start()], text[relation.end() :]))
        name = f"{relation['side']} of" if relation["side"] else "above" if relation["above"] else "below"
        placed = GenEvalRequirement(placed.name, placed.count, placed.color, (name, 0))
        needs = (other, placed)
    else:
        needs = tuple(_read(part, prompt) for part in _AND.split(text))
    fault = _repeated(needs)
    if fault:
        raise BadInput(_refusal(prompt, fault, ""))
    if relation:
        return GenEvalCase(prompt, "position", needs)
    first = needs[0]
    if len(needs) > 1:
        return GenEvalCase(prompt, "color_attr" if any(need.color for need in needs) else "two_object", needs)
    if first.count > 1:
        return GenEvalCase(prompt, "counting", needs, ((first.name, first.count + 1),))
    return GenEvalCase(prompt, "colors" if first.color else "single_object", needs)


def _read(part: str, prompt: str) -> GenEvalRequirement:
    """One thing of a prompt, such as "a red car"."""
    found = _thing().fullmatch(part)
    if found is None:
        raise BadInput(_refusal(prompt, f"{part[:60]!r} is no such thing", part))
    name, several = _nouns()[found["noun"]]
    word = found["count"] or ""
    if not word and several:
        raise BadInput(_refusal(prompt, f"how many {found['noun']}?", ""))
    count = NUMBERS.index(word) if word in NUMBERS else int(word) if word.isdigit() else 1
    return GenEvalRequirement(name, count, found["color"])


def _repeated(needs: Sequence[GenEvalRequirement]) -> str | None:
    """A fault, where two want the same class: GenEval looks at the surest ones of each, so the second
    "apple" would be the first one again."""
    names = [need.name for need in needs]
    twice = [name for name in names if names.count(name) > 1]
    return f"two different demands on {twice[0]}" if twice else None


def _refusal(prompt: str, why: str, part: str) -> str:
    noun = re.sub(rf"^(?:(?:an?|the|{'|'.join(COLORS)}) )+", "", part)
    near = difflib.get_close_matches(noun, _nouns(), n=1, cutoff=0.7)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return (
        "the GenEval judge expects a prompt such as 'a photo of two dogs', 'a red car and a blue bird' or "
        f"'a cat left of a dog', of COCO's 80 things and the colours {', '.join(COLORS)}; "
        f"got {prompt.strip()[:80]!r} ({why}{hint}); word it so, or use another --judge"
    )


def most_confident(
    detections: Sequence[ObjectDetection], name: str, threshold: float = MIN_CONFIDENCE
) -> list[ObjectDetection]:
    """Those of a class above the threshold, surest first, at most MOST."""
    found = [d for d in detections if d.name == name and d.confidence > threshold]
    return sorted(found, key=lambda d: -d.confidence)[:MAX_DETECTIONS]


def component(a: ObjectDetection, b: ObjectDetection, relation: str) -> float:
    """How far `a` lies in the direction `relation` from `b`: -1..1, 0 where the margin leaves nothing."""
    offsets, rest = [], []
    for low, high in ((0, 2), (1, 3)):  # across, down
        offset = (a.box[low] + a.box[high] - b.box[low] - b.box[high]) / 2
        sizes = abs(a.box[high] - a.box[low]) + abs(b.box[high] - b.box[low])
        offsets.append(offset)
        rest.append(math.copysign(max(abs(offset) - MARGIN * sizes, 0.0), offset))
    if max(map(abs, rest)) < MIN_OFFSET:
        return 0.0
    right, down = RELATIONS[relation]
    return (rest[0] * right + rest[1] * down) / math.hypot(*offsets)


def is_right(case: GenEvalCase, detections: Sequence[ObjectDetection]) -> bool:
    """GenEval's verdict."""
    return not faults(case, detections)


def faults(case: GenEvalCase, detections: Sequence[ObjectDetection]) -> list[str]:
    """Short phrases, one per thing that is wrong; empty where the picture is right."""
    wrong: list[str] = []
    matched: list[list[ObjectDetection]] = []  # what each requirement found; empty where it does not hold
    for need in case.include:
        everything = most_confident(detections, need.name, case.threshold)
        found, before = everything[: need.count], len(wrong)
        if len(found) < need.count:
            wrong.append(_too_few(need, len(found)))
        elif need.color and any(d.color != need.color for d in found):
            wrong.append(_miscolored(need, found))
        elif need.position:
            relation, index = need.position
            # Where the other thing is missing or miscoloured, that has been said already.
            pairs = itertools.product(found, matched[index])
            if any(component(a, b, relation) <= COMPONENT for a, b in pairs):
                wrong.append(f"the {need} is not {relation} the {case.include[index]}")
        matched.append(found if len(wrong) == before else [])
    for name, too_many in case.exclude:
        seen = len(most_confident(detections, name, case.threshold))
        if seen >= too_many:
            wrong.append(f"I see {_number_of(seen, name)}, {_asked(too_many - 1)}")
    return wrong


def _number_of(count: int, name: str) -> str:
    return f"{count or 'no'} {name if count == 1 else plural(name)}"


def _asked(count: int) -> str:
    return f"{count or 'none'} {'was' if count == 1 else 'were'} asked for"


def _too_few(need: GenEvalRequirement, found: int) -> str:
    if need.count == 1:
        return f"there is no {need}"
    return f"I see {_number_of(found, need.name)}, {_asked(need.count)}"


def _miscolored(need: GenEvalRequirement, found: Sequence[ObjectDetection]) -> str:
    if need.count == 1:
        return f"the {need.name} is {found[0].color}, not {need.color}"
    right = sum(d.color == need.color for d in found)
    verb = "is" if right == 1 else "are"
    return f"{right or 'none'} of the {need.count} {plural(need.name)} {verb} {need.color}"


def soft_score(case: GenEvalCase, detections: Sequence[ObjectDetection]) -> float:
    """Half the strict verdict, half the mean credit of all that was asked for: 0..1, above .5 exactly where
    the picture is right.

    A thing is worth its confidence, less where its colour is unlikely; one too many takes off a third. A
    position is worth the confidence of the less sure of its two things, less the farther it is from held.
    """
    credits = []
    for need in case.include:
        found = most_confident(detections, need.name)
        worth = [d.confidence * _color_credit(need, d) for d in found[: need.count]]
        limit = min((count for name, count in case.exclude if name == need.name), default=math.inf)
        surplus = max(len(most_confident(detections, need.name, case.threshold)) - limit + 1, 0)
        credits.append(sum(worth) / need.count / (1 + 0.5 * surplus))
        if need.position:
            relation, index = need.position
            other = most_confident(detections, case.include[index].name)
            if not (found and other):
                credits.append(0.0)
                continue
            held = min(1.0, (component(found[0], other[0], relation) + 1) / (1 + COMPONENT))
            credits.append(held * min(found[0].confidence, other[0].confidence))
    for name, count in case.exclude:
        if all(need.name != name for need in case.include):
            credits.append(1.0 if len(most_confident(detections, name, case.threshold)) < count else 0.0)
    return 0.5 * is_right(case, detections) + 0.5 * sum(credits) / len(credits)


def _color_credit(need: GenEvalRequirement, seen: ObjectDetection) -> float:
    if need.color is None:
        return 1.0
    assert seen.colors is not None
    return WRONG_COLOR + (1 - WRONG_COLOR) * seen.colors[need.color]
