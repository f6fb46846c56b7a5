"""The templates of this folder, and what the pages may load: a page runs its own scripts and no others."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ... import __version__

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from markupsafe import Markup

HERE = Path(__file__).parent
PAGE, INDEX_FILES = "index.html", "index_files"


def template(name: str) -> Template:
    """A template of this folder. All text is escaped; an undefined name is an error."""
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,  # a run of days goes on with the pages that it began with
    )
    made.globals.update(script=_script, policy=_policy, version=__version__)
    made.filters["in_words"] = _in_words
    return made


def _in_words(value: object) -> str:
    """A setting as people write it: "yes" for True, "a, b" for a list, "a: 1, b: 2" for a mapping."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        parts = [
            f"{key}: ({_in_words(one)})" if isinstance(one, dict) else f"{key}: {_in_words(one)}"
            for key, one in value.items()
            if one is not None
        ]
        return ", ".join(parts)
    if isinstance(value, (list, tuple)):
        return ", ".join(_in_words(one) for one in value)
    return str(value)


def _script(*names: str) -> Markup:
    """Script files of this folder as one element of the page."""
    from markupsafe import Markup

    return Markup(f"<script>{_source(*names)}</script>")  # noqa: S704  files of ours


def _policy(*scripts: str, files: bool = False) -> Markup:
    """The Content-Security-Policy of a page with the script files `scripts`.

    Escaping keeps foreign text out of the markup. Should it ever fail, this keeps foreign scripts, requests
    and forms out: only the script with this checksum runs. With `files` the page may show pictures that lie
    beside it, and its script may load others.
    """
    from markupsafe import Markup

    # "file:" for browsers that give a local file no origin, so that 'self' is nothing to them.
    beside = " 'self' file:" if files else ""
    rules = ["default-src 'none'", f"img-src data:{beside}", f"style-src 'unsafe-inline'{beside}"]
    rules += ["base-uri 'none'", "form-action 'none'"]
    if files:
        rules.append(f"media-src{beside}")
    if scripts:
        digest = base64.b64encode(hashlib.sha256(_source(*scripts).encode()).digest()).decode()
        rules.append(f"script-src 'sha256-{digest}'" + (" 'strict-dynamic'" if files else ""))
    meta = f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(rules)}">'
    return Markup(meta)  # noqa: S704  words of ours


@cache
def _source(*names: str) -> str:
    return "".join((HERE / name).read_text(encoding="utf-8") for name in names)
