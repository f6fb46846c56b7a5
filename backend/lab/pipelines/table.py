"""The table of all text-to-image pipelines: what was tried with each, as Markdown in a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...core.errors import BadInput, UnknownName
from ...core.model_files import quiet_loading
from .catalogue import classes, why_not
from .every import EVERY
from .trial import Trial, try_pipeline

BEGIN, END = "<!-- pipelines -->", "<!-- /pipelines -->"
_COLUMNS = {
    "drawn": "drawn",
    "exact": "exact when pruned",
    "previews": "previews",
    "image_to_image": "image to image",
    "lora": "`--lora`",
    "training": "`train diffusion-dpo`",
}

Progress = Callable[[str, int, int], None]


def try_all(names: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Every tiny pipeline, or those of these names, and why other classes are not drawn. As JSON: `trials` by
    name, `others` {class: reason}, `diffusers` the version. Raises UnknownName."""
    import diffusers

    for name in names:
        if name not in EVERY:
            raise UnknownName("tiny pipeline", name, EVERY)
    wanted = list(names or EVERY)
    trials: dict[str, Trial] = {}
    with quiet_loading():
        for done, name in enumerate(wanted):
            progress(name, done, len(wanted))
            trials[name] = try_pipeline(name, EVERY[name])
        progress("", len(wanted), len(wanted))
        built = {trial.pipeline for trial in trials.values()}
        others = {name: why_not(made) for name, made in classes().items() if name not in built}
    return {
        "diffusers": diffusers.__version__,
        "trials": {name: asdict(trial) for name, trial in trials.items()},
        "others": {} if names else others,
    }


def as_markdown(result: Mapping[str, Any]) -> str:
    """The result of `try_all` -> a table of what is drawn, and one of what is not."""
    lines = [
        f"| of diffusers {result['diffusers']} | " + " | ".join(_COLUMNS.values()) + " |",
        "|---" * (len(_COLUMNS) + 1) + "|",
    ]
    reasons: dict[str, list[str]] = defaultdict(list)
    rows: dict[str, str] = {}
    for trial in result["trials"].values():
        if not trial["drawn"]:
            if trial["pipeline"]:
                reasons[trial["why"].get("drawn", "draws nothing")].append(trial["pipeline"])
            continue
        cells = ["–" if trial[key] is None else "yes" if trial[key] else "no" for key in _COLUMNS]
        rows.setdefault(trial["pipeline"], f"| {trial['pipeline']} | " + " | ".join(cells) + " |")
    lines += [rows[name] for name in sorted(rows)]
    for name, why in result["others"].items():
        reasons[why].append(name)
    lines += ["", f"{len(rows)} classes are drawn. The others:", "", "| not drawn, because | |", "|---|---|"]
    for why in sorted(reasons, key=lambda one: -len(reasons[one])):
        lines.append(f"| {why} | {', '.join(sorted(reasons[why]))} |")
    return "\n".join(lines)


def write_into(page: Path, result: Mapping[str, Any]) -> None:
    """Put the table between the page's marks. Raises BadInput for a page without them."""
    from ...storage.files import write_whole

    try:
        text = page.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        _, after = rest.split(END)
    except (OSError, ValueError):
        raise BadInput(f"{page} has no place for the table: expected {BEGIN} and {END} once each") from None
    write_whole(page, f"{before}{BEGIN}\n{as_markdown(result)}\n{END}{after}")
