"""Prompts in text files, checked before any work is spent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..core.errors import BadInput

MAX_WORDS = 512  # as many tokens as FLUX's T5 reads; what is longer would be cut off unseen
MAX_CHARACTERS = 8_000


def check_prompt(prompt: str, where: str = "the prompt") -> str:
    """The prompt without blanks at its ends. Raises BadInput for one that cannot be drawn."""
    text = prompt.strip()
    if not text:
        raise BadInput(f"{where} is empty; write a few words that say what the picture shows")
    words = len(text.split())
    if words > MAX_WORDS:
        raise BadInput(f"{where} has {words:,} words; the limit is {MAX_WORDS}")
    if len(text) > MAX_CHARACTERS:
        raise BadInput(f"{where} has {len(text):,} characters; the limit is {MAX_CHARACTERS:,}")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadInput(f"{where} is not UTF-8 text; check the terminal's encoding")
    if "\0" in text:
        raise BadInput(f"{where} holds a zero byte; it is no text")
    return text


def read_prompts(path: Path, note: Callable[[str], None]) -> list[str]:
    """The prompts of a text file, one a line, in UTF-8; empty lines are skipped with a note."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read the prompt file {path}: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from error
    found, empty = [], 0
    # Not splitlines: a form feed or a Unicode line separator inside a prompt ends no line.
    for number, line in enumerate(text.replace("\r\n", "\n").rstrip("\n").split("\n"), 1):
        if line.strip():
            found.append(check_prompt(line, f"{path}, line {number}: the prompt"))
        else:
            empty += 1
    if not found:
        raise BadInput(f"{path} holds no prompt; write one a line")
    if empty:
        note(f"{path}: {empty} empty line{'s' if empty > 1 else ''} skipped")
    return found
