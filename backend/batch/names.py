"""Readable names of pictures, and the files that a run has saved on its server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .plan import Run

WORDS, SETTINGS = 48, 32  # letters of a name
SavedFile = tuple[str, dict[str, Any]]
"""The node, and the file as the server names it: filename, subfolder, type."""
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,5}")


def file_name(run: Run, number: int, several: bool, ending: str) -> str:
    """As "a-red-cat-cfg4-s7-1f3a9c02.png": the prompt's words, settings, seed, the run's own name."""
    parts = [_words(run.prompt or "picture", WORDS) or "picture"]
    settings = "-".join(_setting(name, value) for name, value in run.settings.items())
    parts += [settings[:SETTINGS].strip("-")] if settings else []
    parts += [f"s{run.seed}"] if run.seed is not None else []
    parts += [run.name[:12]]
    parts += [str(number + 1)] if several else []
    return "-".join(part for part in parts if part) + ending


def ending_of(name: str) -> str:
    """The ending of a server's file, as one that is safe here."""
    found = _ENDING.search(name[-6:]) if "." in name[-6:] else None
    return found.group().lower() if found else ".bin"


def saved_files(outputs: Mapping[str, Mapping[str, Any]], only: str | None) -> list[SavedFile]:
    """All that a run has saved, or else shown, in the order of the nodes' numbers; of the node `only` where
    that is named."""
    found = [
        (node, file)
        for node, output in sorted(outputs.items(), key=lambda item: _order(item[0]))
        if only in (None, node)
        for files in output.values()
        if isinstance(files, list)
        for file in files
        if isinstance(file, dict) and isinstance(file.get("filename"), str)
    ]
    saved = [(node, file) for node, file in found if file.get("type") == "output"]
    return saved or found


def _words(text: str, most: int) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words if len(words) <= most else words[:most].rpartition("-")[0] or words[:most]


def _setting(name: str, value: Any) -> str:
    key = re.sub(r"[^a-z0-9]+", "", name.rpartition(".")[2].lower())[:8]
    if _number(value):
        return f"{key}{value}"
    text = str(value)
    stem, dot, ending = text.rpartition(".")  # of a model's file
    return key + _words(stem if dot and len(ending) <= 12 else text, 16)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and len(str(value)) <= 10


def _order(node: str) -> list[Any]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in node.split(":")]
