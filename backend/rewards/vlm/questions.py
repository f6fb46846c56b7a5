"""The questions to a VLM judge, and the parsers of its answers. Independent of any model.

Sources: VQAScore's question (arXiv 2404.01291) for `match` and for each part of a checklist; PARM's three
judgements (arXiv 2501.13926) and RePrompt's grade of 0 to 10 (arXiv 2505.17540), in wordings of our own. A
checklist of parts, each asked separately, is TIFA's and DSG's idea (arXiv 2303.11897, 2310.18235).
Departs from them: a part is a phrase of the prompt, not a question, so that a failed part can go into a
critique for a rewriter; the right answer to every part is yes.
"""

from __future__ import annotations

import re

YES_OR_NO = "Please answer yes or no."
_PREVIEW = 'This picture is a preview of one that is still being drawn for the prompt "{}". '
QUESTIONS = {
    "match": f'Does this figure show "{{}}"? {YES_OR_NO}',
    "clarity": f"{_PREVIEW}Is it clear enough already to judge what the finished one will show? {YES_OR_NO}",
    "potential": f"{_PREVIEW}Will the finished one show all that the prompt asks for? {YES_OR_NO}",
}
CRITIQUE = 'This picture was drawn for the prompt "{}", and does not show what it asks for. What is wrong?'
GRADE = (
    'This picture was drawn for the prompt "{}". How well does it show what the prompt asks for, from 0 (not '
    "at all) to 10 (everything, exactly)? Answer with one number."
)
PARTS = (
    'A picture is wanted that shows "{}". List what must be seen in it, one short phrase on each line: each '
    "thing with its number and colour, where things are to each other, the place, the style. Keep the words "
    "of the wish, add nothing to it, and write the list alone."
)

_LONGEST_PART = 20  # words; a longer line is not an entry of the list
_BULLET = re.compile(r"^\s*(?:[-*•–]+|\(?\d+[.):])\s*")
_NUMBER = r"(-?\d+(?:[.,]\d+)?)"
_ALONE = _NUMBER + r"(?![.,]?\d|\w)(?!\s*(?:/|%|out of))"  # not on another scale
_ONE = _ALONE + r"(?!\s*(?:or|to|-|–)\s*\d)"  # and not a range
# Patterns of a grade, the most reliable first.
_GRADES = (
    re.compile(rf"{_NUMBER}\s*(?:/|out of)\s*10\b", re.I),
    re.compile(rf"\b(?:grade|rating|score)\b(?:\s+(?:is|of))?\W{{0,4}}?{_ONE}", re.I),
    re.compile(rf"^[\s*_#\"'(]*{_ONE}"),
    re.compile(rf"(?<![\w.,/]){_ALONE}"),
)

_NUMBERS = "one two three four five six seven eight nine ten eleven twelve"
_DETERMINER = rf"(?:an?|the|{_NUMBERS.replace(' ', '|')}|\d+|some|several|many|few|no)\b"
_ADJECTIVES = frozenset(
    "big large huge small little tiny tall short long round old young new bright dark light red orange "
    "yellow green blue purple pink brown black white grey gray golden silver".split()
)
_RELATIONS = (
    "to the left of",
    "to the right of",
    "on the left of",
    "on the right of",
    "left of",
    "right of",
    "on top of",
    "in front of",
    "next to",
    "inside of",
    "above",
    "below",
    "under",
    "behind",
    "beside",
    "near",
    "inside",
    "over",
    "between",
    "holding",
    "wearing",
    "with",
    "on",
    "in",
    "at",
)
_OPENING = re.compile(r"^(?:an?|the)\s+(?:photo|photograph|picture|image)\s+of\s+", re.I)
_MEDIUM = re.compile(
    r"^((?:an?|the)\s+(?:[\w-]+\s+)*(?:painting|drawing|sketch|illustration|render))\s+of\s+", re.I
)
_JOINT = re.compile(rf"[,;]\s+(?:and\s+)?|[.!?]\s+|\s+and\s+(?={_DETERMINER})", re.I)
_RELATED = re.compile(rf"^(.+?)\s+(?:{'|'.join(_RELATIONS)})\s+(?={_DETERMINER})(.+)$", re.I)


def split_prompt(prompt: str) -> tuple[str, ...]:
    """The parts that a prompt asks for, found by rules alone; at least one.

    Parts are the clauses. A relation between two things gives each thing and the whole clause.

    >>> split_prompt("a photo of a red cube left of two balls, at night")
    ('a red cube', 'two balls', 'a red cube left of two balls', 'at night')
    """
    text = _OPENING.sub("", " ".join(prompt.split()))
    parts: list[str] = []
    if medium := _MEDIUM.match(text):
        parts.append(medium[1])
        text = text[medium.end() :]
    clauses: list[str] = []
    for clause in _JOINT.split(text):
        if clauses and _lacks_noun(clauses[-1]):  # "a big, red ball" is one thing
            clauses[-1] += f", {clause}"
        else:
            clauses.append(clause)
    for clause in clauses:
        parts += _related(clause.strip(" .,;!?"))
    return _distinct(parts) or (prompt.strip(),)


def _lacks_noun(clause: str) -> bool:
    words = clause.casefold().split()
    return bool(words) and all(re.fullmatch(_DETERMINER, w) or w in _ADJECTIVES for w in words)


def _related(clause: str) -> list[str]:
    things, clauses = [], []
    while found := _RELATED.match(clause):
        things.append(found[1])
        clauses.insert(0, clause)
        clause = found[2]
    return [*things, clause, *clauses]


def _distinct(parts: list[str]) -> tuple[str, ...]:
    return tuple({part.casefold(): part for part in reversed(parts) if part}.values())[::-1]


def read_parts(text: str, prompt: str) -> tuple[str, ...]:
    """The phrases of a list that a model wrote about `prompt`; empty if it wrote no such list.

    A line that shares no word with the prompt is left out: it is invented or no entry of the list.
    """
    folded, parts = prompt.casefold(), []
    for line in _answer(text).splitlines():
        part = _BULLET.sub("", line).strip(" \t*_`\"'.,;")
        words = re.findall(r"\w+", part.casefold())
        shared = any(word in folded for word in words if len(word) > 2 or not word.isascii())
        if shared and len(words) <= _LONGEST_PART and not part.endswith((":", "?")):
            parts.append(part)
    return _distinct(parts)


def read_yes_no(text: str) -> bool | None:
    """Whether an answer is yes or no, by its first word or else its last; None if neither is yes or no."""
    answer = _answer(text)
    word = re.match(r"\W*(yes|no)\b", answer, re.I) or re.search(r"\b(yes|no)\W*$", answer, re.I)
    return word[1].casefold() == "yes" if word else None


def read_grade(text: str) -> float | None:
    """The grade of 0 to 10 in an answer; None if there is none, or it is ambiguous."""
    answer = _answer(text)
    for pattern in _GRADES:
        grades = {float(number.replace(",", ".")) for number in pattern.findall(answer)}
        if grades:
            grade = grades.pop()
            return grade if not grades and 0 <= grade <= 10 else None
    return None


def _answer(text: str) -> str:
    """The text after a model's reasoning."""
    return text.rsplit("</think>", 1)[-1].strip()
