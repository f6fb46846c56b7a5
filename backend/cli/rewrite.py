"""`reprise rewrite`: rewriting only, to read or to paste elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options


def rewrite(
    prompts: options.Prompts = None,
    file: options.PromptFile = None,
    rewriter: options.Rewriter = None,
    variants: Annotated[
        int, typer.Option(metavar="K", callback=options.between(1, 256), help="Rewrites of each prompt.")
    ] = 1,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Rewrite prompts and show the reasons. --json prints an array with an object for each prompt."""
    from ..factory import open_rewriter, parse_rewriter
    from . import terminal
    from .prompts import gather

    texts = gather(prompts or [], file, terminal.note)
    writer = parse_rewriter(rewriter)
    with terminal.quiet_stdout(as_json):
        found = open_rewriter(writer).rewrite(texts, variants, seed)
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
