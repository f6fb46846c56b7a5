"""The table of all faults, by command and kind, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .harness import ALTERED, BROKEN, LOST, REFUSED, RIGHT, SURVIVED
from .plan import KINDS

COUNTS = {
    SURVIVED: "survived",
    REFUSED: "refused in one line",
    LOST: "lost",
    ALTERED: "silently other",
    BROKEN: "traceback",
}


def table(found: Sequence[Mapping[str, str]]) -> str:
    """A row for each command. In a kind's column stands how many of its faults were tried; of those that did
    not end well, how many."""
    commands = list(dict.fromkeys(one["command"] for one in found))
    rows = [["command", *KINDS, "injected", *COUNTS.values()]]
    for command in [*commands, None]:
        mine = [one for one in found if command in (None, one["command"])]
        cells = []
        for kind in KINDS:
            of_kind = [one for one in mine if one["kind"] == kind]
            wrong = sum(one["verdict"] not in RIGHT for one in of_kind)
            cells.append((f"{len(of_kind)}" + (f" ({wrong} wrong)" if wrong else "")) if of_kind else "")
        totals = [len(mine), *(sum(one["verdict"] == verdict for one in mine) for verdict in COUNTS)]
        rows.append([command or "**all**", *cells, *map(str, totals)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
