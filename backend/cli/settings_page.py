"""`python -m reprise.backend.cli.settings_page` writes docs/settings.md, all settings of all trainers, from
the code. `make settings` calls it; a test compares."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from ..evaluation.tables import TableRow
from ..factory import TRAINERS, find_trainer
from ..storage.files import write_whole
from ..training import shipped_configs
from .settings import settings_of
from .train import SUMMARIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"

START = """\
# Settings

*Written by `make settings`; change the descriptions in the code.*

A setting is a line of the YAML file that `reprise train METHOD CONFIG.yaml` reads, or a word `key=value`
behind it; nested settings have dots: `reprise train grpo shapeworld renderer.steps=4`. An unknown setting is
refused. `reprise train METHOD --settings` prints the same table.
"""


def page() -> str:
    """The text of docs/settings.md."""
    parts = [START]
    for name in TRAINERS:
        configs = ", ".join(f"`{config}`" for config in shipped_configs(name))
        parts.append(
            f"## reprise train {name}\n\n{SUMMARIES[name]} Configs that come with Reprise: {configs}.\n"
        )
        parts.append(table(find_trainer(name).config))
    parts.append("## reprise evaluate search\n\nThe settings of a row of its file.\n")
    parts.append(table(TableRow))
    return "\n".join(parts)


def table(model: type[BaseModel]) -> str:
    """The settings of `model` as a Markdown table."""
    lines = ["| Setting | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    for one in settings_of(model):
        cells = (f"`{one.name}`", one.type, f"`{one.default_text}`", one.description)
        if one.required:
            cells = (*cells[:2], "required", cells[3])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_whole(PAGE, page())
    print(PAGE)
