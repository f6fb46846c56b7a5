"""Prompts that stand for many: {a|b} is one of its words, __name__ a line of the file name.txt.

{a|b|c}        one of the three; also inside one another
{3::a|b}       a is taken three times as often
{2$$a|b|c}     two of them, with ", " between; {2$$ and $$a|b|c} sets what is between
__animals__    a line of animals.txt in the folder of wildcards, which may hold braces and names, too
\\{ \\} \\| \\_   the character itself

These are what the common packs of dynamic prompts understand most of. The library `dynamicprompts` has had
no release since March 2024.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from ..core.errors import BadInput, UnknownName
from ..storage.files import read_text

DEEPEST = 20  # names in names: a file that names itself would never end
LONGEST = 8_000  # characters of a prompt that was made
_NAME = re.compile(r"__([\w/*-]+?)__")
_TOKEN = re.compile(r"\\[{}|_\\]|[{}|]")
_ESCAPED = re.compile(r"\\([{}|_\\])")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d+)?)::")
_COUNT = re.compile(r"\s*(\d+)(?:-(\d+))?\$\$(?:((?:(?!\$\$).)*)\$\$)?", re.DOTALL)


class Wildcards:
    """Makes prompts; `folder` holds the files that names stand for."""

    def __init__(self, folder: Path | None = None):
        if folder is not None and not folder.is_dir():
            raise BadInput(f"there is no folder of wildcards {folder}; name one with .txt files")
        self.folder = folder
        self._lines: dict[str, list[str]] = {}

    def has(self, text: str) -> bool:
        """Whether `text` stands for several prompts."""
        return bool(
            re.search(r"(?<!\\)\{[^{}]*(?<!\\)[|$]", text) or (self.folder is not None and _NAME.search(text))
        )

    def expand(self, text: str, seed: str) -> str:
        """One of the prompts that `text` stands for; the same for the same `seed`.

        Raises BadInput for braces that do not match, UnknownName for a name without a file.
        """
        made = _ESCAPED.sub(r"\1", self._expand(text, random.Random(f"{seed}\n{text}"), 0))
        made = " ".join(made.split())
        if not made:
            raise BadInput(f"the prompt {text[:80]!r} came out empty; give each choice some words")
        return made

    def _expand(self, text: str, draw: random.Random, depth: int) -> str:
        if depth > DEEPEST:
            raise BadInput(f"wildcards name each other more than {DEEPEST} times; one may name itself")
        made, rest = "", text
        while (start := _first(rest, "{")) is not None:
            end = _closing(rest, start, text)
            made += rest[:start] + self._choose(rest[start + 1 : end], draw, depth)
            rest = rest[end + 1 :]
            if len(made) > LONGEST:
                raise BadInput(f"a prompt of wildcards came out longer than {LONGEST:,} characters")
        if _first(rest, "}") is not None:
            raise BadInput(f"the prompt {text[:80]!r} closes a brace that is not open; write \\}} for one")
        made += rest
        if self.folder is None:
            return made
        return _NAME.sub(lambda name: self._expand(self._line(name[1], draw), draw, depth + 1), made)

    def _choose(self, choices: str, draw: random.Random, depth: int) -> str:
        least = most = 1
        between = ", "
        if count := _COUNT.match(choices):
            least, most = int(count[1]), int(count[2] or count[1])
            between = count[3] if count[3] is not None else between
            choices = choices[count.end() :]
        options = _split(choices)
        if len(options) == 1 and not count:  # braces around a plain text are a text
            return "{" + self._expand(choices, draw, depth + 1) + "}"
        weights = []
        for i, option in enumerate(options):
            weight = _WEIGHT.match(option)
            weights.append(float(weight[1]) if weight else 1.0)
            options[i] = option[weight.end() :] if weight else option
        picked = []
        left = [i for i, weight in enumerate(weights) if weight > 0]
        for _ in range(min(draw.randint(min(least, most), max(least, most)), len(left))):
            at = draw.choices(left, [weights[i] for i in left])[0]
            left.remove(at)
            picked.append(self._expand(options[at], draw, depth + 1))
        return between.join(picked)

    def _line(self, name: str, draw: random.Random) -> str:
        assert self.folder is not None
        if name not in self._lines:
            found = sorted(self.folder.glob(f"{name}.txt")) if ".." not in name else []
            lines = [
                line.strip()
                for path in found
                for line in read_text(path, "wildcards", "are").splitlines()
                if line.strip() and not line.lstrip().startswith("#")
            ]
            if not lines:
                known = [
                    path.relative_to(self.folder).with_suffix("").as_posix()
                    for path in self.folder.rglob("*.txt")
                ]
                raise UnknownName(f"wildcard in {self.folder}:", name, known)
            self._lines[name] = lines
        return draw.choice(self._lines[name])


def _first(text: str, wanted: str) -> int | None:
    return next((one.start() for one in _TOKEN.finditer(text) if one.group() == wanted), None)


def _closing(text: str, start: int, whole: str) -> int:
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return token.start()
    raise BadInput(f"the prompt {whole[:80]!r} opens a brace that it does not close; write \\{{ for one")


def _split(choices: str) -> list[str]:
    """The parts between the | that are not inside braces."""
    parts, depth, begun = [], 0, 0
    for token in _TOKEN.finditer(choices):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if token.group() == "|" and depth == 0:
            parts.append(choices[begun : token.start()])
            begun = token.end()
    return [*parts, choices[begun:]]
