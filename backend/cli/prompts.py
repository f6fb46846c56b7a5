"""The user's prompts, from arguments and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..core.errors import BadInput
from ..storage.prompt_files import check_prompt, read_prompts


def gather(arguments: Sequence[str], path: Path | None, note: Callable[[str], None]) -> list[str]:
    """All prompts in order, each once. Raises BadInput where there is none."""
    found = [check_prompt(prompt) for prompt in arguments]
    if path is not None:
        found += read_prompts(path, note)
    if not found:
        raise BadInput("no prompt given; write one in quotes, or name a file with --prompts FILE")
    once = list(dict.fromkeys(found))
    if len(once) < len(found):
        note(f"{len(found) - len(once)} duplicate prompt{'s' if len(found) - len(once) > 1 else ''} left out")
    return once
