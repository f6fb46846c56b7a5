"""`reprise rewrite`: rewriting only, to read or to paste elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from ..core.errors import BadInput
from . import options


def rewrite(
    prompts: options.Prompts = None,
    file: options.PromptFile = None,
    rewriter: options.Rewriter = None,
    variants: Annotated[int, typer.Option(metavar="K", help="Rewrites of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same rewrites.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Rewrite prompts and show the reasoning. --json prints an array, one object per prompt."""
    from ..factory import find_rewriter
    from . import terminal
    from .prompts import gather

    texts = gather(prompts or [], file, terminal.note)
    if not 1 <= variants <= 256:
        raise BadInput(f"--variants must be 1 to 256, got {variants}")
    options.check_seed(seed)
    find = find_rewriter(rewriter)
    with terminal.quiet_stdout(as_json):
        found = find().rewrite(texts, variants, seed)
    if as_json:
        terminal.print_json(
            [
                {"prompt": text, "rewrites": [vars(r) for r in rewrites]}
                for text, rewrites in zip(texts, found, strict=True)
            ]
        )
        return
    rows = []
    for text, rewrites in zip(texts, found, strict=True):
        for i, r in enumerate(rewrites):
            rows.append((text if i == 0 else "", r.reason, r.prompt))
            if r.fallback:
                terminal.note(f"{text}: the prompt stands as it was, {r.fallback}")
    terminal.print_table(None, ("prompt", "reason", "rewrite"), rows)
