"""GenEval's prompts: COCO's classes, the metadata of a prompt, and a parser.

Source: GenEval (arXiv 2310.11513), github.com/djghosh13/geneval at af4902f: `prompts/create_prompts.py` (the
wording) and `evaluation/object_names.txt`.
Departs from it: prompts may also be short ("two dogs"), give a number up to ten, join more than two things,
or combine colour, number and position; each class may appear only once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...core.errors import BadInput, first_line
from ...core.parsing import parse_json
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


@dataclass(frozen=True)
class GenEvalRequirement:
    """One `include` entry: `count` things of a class, optionally with a colour and a position.

    `position` is (relation, index of an earlier requirement that it is relative to).
    """

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None

    def __str__(self) -> str:
        return f"{self.color} {self.name}" if self.color else self.name


@dataclass(frozen=True)
class GenEvalCase:
    """A prompt and the requirements on its picture. `exclude` holds (class, first count that is too many)."""

    prompt: str
    tag: str
    include: tuple[GenEvalRequirement, ...]
    exclude: tuple[tuple[str, int], ...] = ()

    def metadata(self) -> dict[str, Any]:
        """The case as a line of GenEval's `evaluation_metadata.jsonl`."""
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
        """The case of a parsed line of `evaluation_metadata.jsonl`. Raises BadInput for an invalid one."""
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
    """{prompt: case} from a file of GenEval's metadata, one JSON object per line. Raises BadInput."""
    cases: dict[str, GenEvalCase] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as GenEval's metadata: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            case = GenEvalCase.from_metadata(parse_json(line)) if line.strip() else None
        except (BadInput, ValueError) as error:
            raise BadInput(f"{path}, line {number}: {first_line(error)}") from error
        if case and cases.setdefault(case.prompt, case) != case:
            raise BadInput(
                f"{path}, line {number}: an earlier line contradicts it about {case.prompt[:80]!r}; keep one"
            )
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


def plural(name: str) -> str:
    if name in PLURALS:
        return PLURALS[name]
    return name + ("es" if name.endswith(("s", "ch", "sh")) else "s")


@cache
def _nouns() -> dict[str, tuple[str, bool]]:
    """{written form of a class: (class, whether the form is a plural)}."""
    nouns: dict[str, tuple[str, bool]] = {}
    for written, name in [*((name, name) for name in CLASSES), *COCO_NAMES.items()]:
        # GenEval's own plurals follow one rule: "benchs", "knifes", "skises".
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
    """Parses a prompt in GenEval's wording. For GenEval's own prompts, `.metadata()` equals GenEval's.

    Raises BadInput for other prompts, which the detector cannot check.
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
    """Parses one thing of a prompt, such as "a red car". Raises BadInput."""
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
    """The fault if two requirements name the same class, else None. GenEval checks the most confident
    detections of each class, so both would be checked on the same one."""
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
