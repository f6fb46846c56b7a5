"""`reprise preferences`: pairs of a better and a worse picture or rewrite, mined from runs, to train on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import BadInput, Interrupted, UnknownName
from ..preferences.pairing import PAIR_BY
from . import options

if TYPE_CHECKING:
    from ..preferences.pairing import PairMiner, PictureGroup
    from ..preferences.store import Store

SERVER = "comfyui:"
PAGE = "pairs.html"
ACROSS = "--by prompt compares pictures of different rewrites, too"
MORE = {
    "render": "`reprise render --prune none` finishes more pictures of a prompt",
    "comfyui": "nodes with pruning off finish more pictures of a prompt",
}
KINDS = ("pairs", "rewrites")

app = typer.Typer(no_args_is_help=True, help="Pairs of better and worse pictures and rewrites, to train on.")

Where = Annotated[
    Path, typer.Option("--store", metavar="DIR", parser=options.path, help="The folder that keeps them.")
]
Margin = Annotated[
    float,
    typer.Option(
        metavar="M",
        help="Least difference of a pair's scores, as a share of the reward's range (of a mix or an unknown "
        "reward: as it is); closer pictures are ties.",
    ),
]
By = Annotated[
    str,
    typer.Option(
        metavar="|".join(PAIR_BY),
        help="What the pictures of a pair share: drawn, the very prompt that was drawn; prompt, the user's "
        "prompt, as the judge read it, however it was rewritten.",
    ),
]
Most = Annotated[
    int,
    typer.Option(
        "--pairs",
        metavar="K",
        callback=options.between(1),
        help="Pairs of a prompt: best and worst, second best and …",
    ),
]
STORE = Path("preferences")


@app.command()
def mine(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…",
            show_default=False,
            help="Folders that are searched for runs of `reprise render` and `reprise train` (with rounds, "
            "too); a FILE.rollouts.jsonl of `reprise data judge`; another store; or comfyui:URL, the "
            "history of a server, which is lost when the server stops.",
        ),
    ],
    store: Where = STORE,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="what the run selected by; of a training the mean of its "
            "rewards of pictures, by their weights",
            help="The reward to compare by.",
        ),
    ] = None,
    by: By = "drawn",
    margin: Margin = 0.05,
    most: Most = 1,
) -> None:
    """Find pairs in what runs left, and copy their pictures. Mining a run again adds nothing twice."""
    mined = _begin(store, by, margin, most)
    with _stoppable(store):
        _mine(mined, runs, reward)


def _mine(mined: PairMiner, runs: list[str], reward: str | None) -> None:
    from ..preferences.history import read_history
    from ..preferences.mining import read_runs
    from ..preferences.store import Store, is_store
    from . import terminal

    found: list[PictureGroup | Store] = []
    for run in runs:
        if run.startswith(SERVER):
            if reward is not None:
                raise BadInput("a server's history has one score a picture; leave --reward out")
            groups = read_history(run.removeprefix(SERVER), terminal.note)
        elif is_store(Path(run)):
            if mined.by != "drawn" or mined.max_pairs != 1:
                raise BadInput(f"the pairs of {run} are made already; leave --by and --pairs out")
            other = Store(run)
            other.check()
            groups = [other]
        else:
            groups = read_runs(Path(run), reward, terminal.note)
        found += groups
    for one in found:  # all of them can be read: now pictures are written
        if isinstance(one, Store):
            mined.copy_pairs(one, reward)
        else:
            mined.add_group(one)
    _finish(mined)


@app.command("import")
def import_(
    tables: Annotated[
        list[Path],
        typer.Argument(
            metavar="TABLE…",
            show_default=False,
            help="CSV or JSON lines beside the pictures, or "
            "their folder: image, prompt, score, and where known drawn_as, seed.",
        ),
    ],
    store: Where = STORE,
    reward: Annotated[str, typer.Option(metavar="NAME", help="What the scores are called.")] = "score",
    lower: Annotated[bool, typer.Option("--lower-is-better", help="Lower scores are better.")] = False,
    by: By = "drawn",
    margin: Margin = 0.05,
    most: Most = 1,
) -> None:
    """Find pairs in pictures that something else has scored."""
    from ..preferences.table import read_table

    mined = _begin(store, by, margin, most)
    with _stoppable(store):
        for group in [group for table in tables for group in read_table(table, reward, lower)]:
            mined.add_group(group)
        _finish(mined)


@app.command()
def show(store: Where = STORE, as_json: options.Json = False) -> None:
    """Say in figures what a store holds."""
    from ..preferences.store import Store
    from . import terminal

    found = Store(store).statistics()
    if as_json:
        terminal.print_json(found)
        return
    rows = []
    for kind in KINDS:
        one = found[kind]
        margin = one["margin"] or {"least": "", "median": "", "most": ""}
        rows.append(
            (
                kind,
                one["recorded"],
                one["struck"],
                one["contradicted"],
                one["usable"],
                one["prompts"],
                *(_short(margin[key]) for key in ("least", "median", "most")),
            )
        )
    columns = ["", "recorded", "struck", "contradicted", "usable", "prompts", "margin", "median", "most"]
    terminal.print_table(None, columns, rows, numbers=columns[1:])
    scores = [
        (kind, name, one["pairs"], _short(one["chosen"]), _short(one["rejected"]))
        for kind in KINDS
        for name, one in found[kind]["rewards"].items()
    ]
    columns = ["", "reward", "usable", "better", "worse"]
    terminal.print_table("mean scores", columns, scores, numbers=columns[2:])
    runs = [(kind, run, count) for kind in KINDS for run, count in found[kind]["runs"].items()]
    terminal.print_table("runs", ["", "run", "usable"], runs, numbers=["usable"])
    if found["images"]["gone"]:
        terminal.note(f"{found['images']['gone']} of {found['images']['named']} pictures are gone")


@app.command()
def page(
    store: Where = STORE,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=options.path, show_default=f"{PAGE} in the store", help="Where to write."
        ),
    ] = None,
    most: Annotated[
        int, typer.Option(metavar="N", callback=options.between(1), help="Pairs shown, the closest first.")
    ] = 400,
) -> None:
    """Write a page to look through pairs and strike bad ones."""
    from ..preferences.store import Store
    from ..reports.pairs import write_pairs
    from . import terminal

    file = out or store / PAGE
    shown = write_pairs(file, Store(store), most)
    terminal.out().print(f"{shown} pairs: open [bold]{file}[/bold]", soft_wrap=True)


@app.command()
def strike(
    file: Annotated[Path, typer.Argument(metavar="STRIKES.json", help="What the page saved.")],
    store: Where = STORE,
) -> None:
    """Take struck pairs out of a store, and those that are struck no more in again."""
    from ..preferences.store import Store, read_strikes
    from . import terminal

    found = Store(store)
    out, back = found.strike(*read_strikes(file))
    left = len(found.pairs()) + len(found.rewrites())
    terminal.out().print(f"{out} pairs struck, {back} back in, {left} left to learn from")


def _begin(store: Path, by: str, margin: float, most: int) -> PairMiner:
    from ..preferences.pairing import PairMiner
    from ..preferences.store import Store

    if by not in PAIR_BY:
        raise UnknownName("--by", by, PAIR_BY)
    if not (math.isfinite(margin) and margin >= 0):
        raise BadInput(f"--margin must be 0 or more, got {margin}")
    there = next(path for path in (store, *store.parents) if path.exists())
    if not there.is_dir():
        raise BadInput(f"expected a folder of preferences, got the file {there}; give another --store")
    kept = Store(store, create=True)
    kept.check()
    return PairMiner(kept, by, margin, most)


@contextmanager
def _stoppable(store: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(f"stopped; {store} is whole, the same command adds what is missing") from stop


def _finish(mined: PairMiner) -> None:
    """Record what was found and say so. Raises BadInput, with what became of it, where that is nothing."""
    from . import terminal

    counts, found = mined.counts, len(mined.pairs) + len(mined.rewrites)
    lost = {
        "with one picture alone": counts["alone"],
        "ties": counts["ties"],
        "whose pictures are gone": counts["gone"],
    }
    said = ", ".join(f"{count} {what}" for what, count in lost.items() if count)
    hints = [ACROSS] if counts["across"] and mined.by == "drawn" else []
    hints += [MORE[source] for source in sorted(mined.single_sources & MORE.keys())]
    if not found:
        hints = ["lower --margin"] * bool(counts["ties"]) + hints
        raise BadInput(
            f"no pair among {counts['groups']} prompts{': ' + said if said else ''}"
            + "".join(f"; {hint}" for hint in hints)
        )
    pictures, texts = mined.store.add(mined.pairs), mined.store.add_rewrites(mined.rewrites)
    _say(mined.store, pictures.new, texts.new, pictures.known + texts.known)
    if said:
        terminal.note(f"left out: {said}" + "".join(f"; {hint}" for hint in hints if not mined.pairs))


def _say(store: Store, pairs: int, rewrites: int, known: int) -> None:
    from . import terminal

    out = f"{pairs} pairs of pictures and {rewrites} of rewrites into [bold]{store.folder}[/bold]"
    terminal.out().print(out + (f", {known} were there already" if known else ""), soft_wrap=True)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
