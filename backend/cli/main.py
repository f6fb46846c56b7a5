"""The command `reprise`: one line per command here, one file per command beside it.

Exit codes: 0 done; 2 bad input, one line on stderr says what and what to do; 1 failure. Stopped, with what
was finished kept: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP; 141 when nobody reads the output any more.
REPRISE_DEBUG=1 shows the traceback behind an error.
"""

from __future__ import annotations

import os
import platform
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from io import TextIOWrapper

import typer

from ..core.errors import Interrupted, RepriseError, plain
from . import batch, data, evaluate, models, preferences, render, rewrite, score, serve, shapeworld, train
from .stops import CTRL_C, PIPE_CLOSED, drop_output, open_closed_streams, stopping_like_ctrl_c

EXTRAS_NEED = (3, 11)  # the Python that diffusers 0.42 needs, and so [render], [train] and [serve]
BACKEND = __name__.rpartition(".cli.")[0]
DRAW, LEARN, DATA, OTHER = "Draw", "Learn", "Make data", "Other"  # panels of the help

app = typer.Typer(
    name="reprise",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A short prompt becomes a better picture: rehearse it, try many seeds, keep and mend the best.",
)
app.command("render", rich_help_panel=DRAW)(render.render)
app.command("rewrite", rich_help_panel=DRAW)(rewrite.rewrite)
app.command("score", rich_help_panel=DRAW)(score.score)
app.command("batch", rich_help_panel=DRAW)(batch.batch)
app.command("models", rich_help_panel=DRAW)(models.models)
app.add_typer(train.app, name="train", rich_help_panel=LEARN)
app.add_typer(evaluate.app, name="evaluate", rich_help_panel=LEARN)
app.add_typer(data.app, name="data", rich_help_panel=DATA)
app.add_typer(preferences.app, name="preferences", rich_help_panel=DATA)
app.add_typer(serve.app, name="serve", rich_help_panel=OTHER)
app.add_typer(shapeworld.app, name="shapeworld", rich_help_panel=OTHER)


def _add_lab() -> None:
    """Add `reprise lab` where its folder is: a repository has it, an installed wheel does not."""
    found = find_spec(f"{BACKEND}.lab")
    if found is not None and found.origin is not None:  # a folder without __init__.py has no origin
        app.add_typer(import_module(f"{BACKEND}.lab.cli").app, name="lab", rich_help_panel=OTHER)


_add_lab()


def _version(value: bool) -> None:
    if value:
        from ... import __version__

        print(f"reprise {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and leave."
    ),
) -> None:
    pass


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: the process's own) and give its exit code."""
    # Before torch is imported. Spinning OpenMP threads cost small models more than they bring.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # prompts are in any language, also on a Windows pipe
            stream.reconfigure(encoding="utf-8")
    command = typer.main.get_command(app)
    with stopping_like_ctrl_c() as signals:
        try:
            code = command.main(
                None if arguments is None else list(arguments), prog_name="reprise", standalone_mode=False
            )
            sys.stdout.flush()
            if code == CTRL_C:  # newer versions of typer turn Ctrl-C into this, older ones raise
                return _fail("stopped", signals.exit_code)
            return code if isinstance(code, int) else 0
        except (KeyboardInterrupt, typer.Abort):
            return _fail("stopped", signals.exit_code)
        except Interrupted as error:
            return _fail(error, signals.exit_code)
        except RepriseError as error:
            return _fail(error, error.exit_code)
        except BrokenPipeError:  # `reprise … | head`
            return _leave_quietly()
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # typer and rich have seen it first
                return _leave_quietly()
            return end.code if isinstance(end.code, int) else 1  # another process of the run says why
        except ModuleNotFoundError as error:
            return _fail(_missing(error.name), 1)
        except Exception as error:
            usage = getattr(error, "format_message", None)  # typer's own: a wrong option or value
            if usage is not None:
                return _fail(usage() or "see reprise --help", getattr(error, "exit_code", 2))
            if isinstance(error, OSError) and error.filename:  # such as a name that is too long
                return _fail(f"cannot use {plain(os.fsdecode(error.filename), 200)}: {error.strerror}", 2)
            return _fail(f"{type(error).__name__}: {error} (REPRISE_DEBUG=1 shows where)", 1)


def _leave_quietly() -> int:
    drop_output()
    return PIPE_CLOSED


def _missing(library: str | None) -> str:
    """What brings a library that is not there: a host may have it, the base installation alone does not."""
    remedy = (
        f"{library} is not installed; pip install 'reprise-nodes[render]' brings what drawing needs, [train] "
        "what training, [serve] what serving needs"
    )
    if sys.version_info < EXTRAS_NEED:
        remedy += f"; they need Python {EXTRAS_NEED[0]}.{EXTRAS_NEED[1]}, this is {platform.python_version()}"
    return remedy


def _fail(error: object, code: int) -> int:
    if os.environ.get("REPRISE_DEBUG"):
        traceback.print_exc()
    try:
        print("reprise: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
    except OSError:  # its terminal is gone
        pass
    drop_output()
    return code


def main() -> None:
    code = run()
    if code:
        from ..training.common import distributed

        distributed.exit_now(code)
    sys.exit(code)
