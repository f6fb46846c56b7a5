"""`reprise batch`: a saved ComfyUI workflow over many prompts and settings, on one or more servers."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..core.errors import BadInput, RepriseError
from ..reports.tally import duration
from ..reports.templates import INDEX_FILES, PAGE
from . import options, terminal

if TYPE_CHECKING:
    from ..batch.inputs import Inputs
    from ..batch.journal import Row
    from ..batch.plan import Axis, Plan, Run
    from ..batch.tally import BatchTally

LOCAL = "http://127.0.0.1:8188"
TABLE = "runs.csv"
SHOWN_RUNS = 20  # of a dry run
FORM = "WORKFLOW, a file that ComfyUI saved: its JSON, a picture or a video"


def batch(
    workflow: Annotated[
        str,
        typer.Argument(
            metavar="WORKFLOW",
            show_default=False,
            help="A workflow as ComfyUI saves or exports it (JSON), or a picture or video of it. Where "
            "its prompt or seed is not clear, name it: flow.json,prompt=6.text,seed=3.seed",
        ),
    ],
    file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            parser=options.path,
            help="A .txt file with a prompt a line, or a .csv, .jsonl or .parquet file: each column is an "
            "input by its name (prompt, negative, seed, steps, cfg, width, model, …) or NODE.INPUT.",
        ),
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL[,URL…]",
            show_default=LOCAL,
            help="The ComfyUI servers that share the work; may be given several times.",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Set an input in all runs; may be given several times."
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V1,V2,…",
            help="Try each of the values, with several sweeps all combinations; 2..8 is a range.",
        ),
    ] = None,
    take: Annotated[
        int | None,
        typer.Option(
            "--random",
            metavar="N",
            callback=options.between(1, 100_000),
            help="Of the sweeps' combinations N at random for each prompt, in place of all.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", callback=options.between(1, 4096), help="Runs of each, seed + 0, 1, …")
    ] = 1,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            callback=options.seed_in_range,
            show_default="the workflow's own",
            help="The first seed of each prompt.",
        ),
    ] = None,
    wildcards: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=options.path,
            help="Text files: __animals__ in a prompt is a line of animals.txt. {a|b} is one of its words, "
            "and needs no folder.",
        ),
    ] = None,
    literal: Annotated[
        bool, typer.Option("--literal", help="Leave {a|b} and __name__ in prompts as they are.")
    ] = False,
    rewriter: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Rewrite each prompt first; named as for `reprise render`."),
    ] = None,
    variants: Annotated[
        int,
        typer.Option(
            metavar="K",
            callback=options.between(1, 4096),
            help="Rewrites of a prompt; its seeds share them evenly.",
        ),
    ] = 4,
    judge: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Score the pictures; named as for `reprise render`."),
    ] = None,
    reward: options.WeightedRewards = None,
    best_of: Annotated[
        int | None,
        typer.Option(
            "--best-of",
            metavar="N",
            callback=options.between(2, 4096),
            help="N seeds of each prompt, of which the judge names the best.",
        ),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(metavar="N", callback=options.between(0, 100), help="How often a run is tried again."),
    ] = 2,
    silence: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            callback=options.between(1, 86_400),
            help="Without a word about a run, before its server counts as lost.",
        ),
    ] = 600.0,
    patience: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            callback=options.between(0, 86_400),
            help="While no server answers, before the command ends; one may be starting again.",
        ),
    ] = 600.0,
    out: options.Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs and where everything goes, and stop.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Open the page while it grows.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The runs as a JSON array on stdout, nothing else.")
    ] = False,
) -> None:
    """Draw a saved ComfyUI workflow with many prompts, settings and seeds, on one or more servers.

    The same command goes on where it was stopped; more prompts, values or seeds add runs.
    """
    from ..batch.inputs import Inputs
    from ..batch.plan import Plan
    from ..batch.table import read_table
    from ..batch.wildcards import Wildcards
    from ..factory import parse_judge, parse_rewriter, parse_weights
    from ..renderers.comfyui.classes import object_info
    from ..renderers.comfyui.client import check_server
    from ..renderers.comfyui.files import read_workflow
    from ..renderers.comfyui.renderer import parse_file

    urls = list(dict.fromkeys(check_server(one) for word in server or [LOCAL] for one in word.split(",")))
    path, names = parse_file(workflow, FORM)
    weights = parse_weights(reward or [])
    judges = parse_judge(judge, weights) if judge or weights else None
    if best_of is not None:
        if judges is None:
            raise BadInput("--best-of needs a --judge or --reward that says which is the best")
        if seeds != 1:
            raise BadInput("--best-of and --seeds are both a number of seeds; give one of them")
        seeds = best_of
    if take is not None and not sweep:
        raise BadInput("--random takes of the values of --sweep; give one")
    writes = parse_rewriter(rewriter) if rewriter not in (None, "none") else None
    classes = object_info(urls)
    inputs = Inputs(str(path), read_workflow(path, classes), names, classes)
    table = read_table(file, terminal.note) if file is not None else None
    plan = Plan(
        inputs,
        table,
        _axes(inputs, sets or [], sweep or []),
        take,
        seeds,
        seed,
        None if literal else Wildcards(wildcards),
        min(variants, seeds) if writes else 0,
        rewriter or "",
    )
    runs = list(plan.runs())
    if plan.duplicates:
        terminal.note(f"{plan.duplicates:,} runs are the same as others, and left out")
    if plan.labels:
        terminal.note(f"no inputs, so they go along as labels: {', '.join(plan.labels)}")
    if writes is not None and any(run.prompt is None for run in runs):
        raise BadInput("--rewriter needs a prompt for each run; give --prompts, or --set prompt=…")
    if judges is not None and any(run.prompt is None for run in runs):
        raise BadInput("a judge needs a prompt for each run; give --prompts, or --set prompt=…")
    out = out or _default_folder(path, file, plan.mark)
    if dry_run:
        _show_plan(plan, runs, urls, out)
        return
    from ..storage.outputs import check_made, claim

    with claim(out, "batch", _names()), terminal.quiet_stdout(as_json), contextlib.ExitStack() as stack:
        check_made(out, out / PAGE, out / TABLE)
        from ..batch.drawing import BatchDrawing
        from ..batch.journal import PICTURES, Journal
        from ..batch.judging import Judging, Rewriting
        from ..batch.tally import BatchTally
        from ..factory import open_judge, open_rewriter
        from ..reports.gallery import Gallery

        journal = Journal(out, plan.mark, path.name, plan.graph)
        judging = Judging(open_judge(judges)) if judges is not None else None
        rewriting = None
        if writes is not None:
            rewriting = Rewriting(open_rewriter(writes), rewriter or "", plan.variants, seed or 0, journal)
        tally = BatchTally(len(runs))
        gallery = Gallery(
            out,
            PICTURES,
            _about(plan, runs, path, file, workflow, urls, judging.higher_is_better if judging else True),
            {run.name: i for i, run in enumerate(runs)},
        )
        drawing = BatchDrawing(
            plan,
            runs,
            journal,
            urls,
            gallery,
            tally,
            terminal.few_notes(12),
            judging,
            rewriting,
            retries=retries,
            silence=silence,
            patience=patience,
            progress=stack.enter_context(_progress(tally)),
        )
        if watch:
            gallery.begin()
            _watch(gallery.path)
        try:
            drawing.run()
        finally:
            _write_table(out, list(journal.rows.values()))
    if as_json:
        names_now = {run.name for run in runs}
        terminal.print_json_list(row for row in journal.rows.values() if row["run"] in names_now)
        return
    _print_summary(tally, [journal.rows[run.name] for run in runs if run.name in journal.rows])
    terminal.out().print(f"open [bold]{escape(str(gallery.path))}[/bold]", soft_wrap=True)


def _axes(inputs: Inputs, sets: Sequence[str], sweep: Sequence[str]) -> list[Axis]:
    from ..batch.plan import parse_axis

    axes = [parse_axis("--set", word, inputs, several=False) for word in sets]
    return axes + [parse_axis("--sweep", word, inputs, several=True) for word in sweep]


def _default_folder(workflow: Path, file: Path | None, mark: str) -> Path:
    """One folder for a workflow and a file of prompts: what is added to the file is added there."""
    words = [workflow.stem, *([file.stem] if file is not None else [])]
    plain = ["".join(c if c.isalnum() else "-" for c in word)[:40] for word in words]
    return Path("out") / "-".join([*plain, mark[:8]])


def _names() -> tuple[str, ...]:
    from ..batch.journal import FILES

    return (PAGE, INDEX_FILES, TABLE, *FILES)


def _about(
    plan: Plan,
    runs: Sequence[Run],
    path: Path,
    file: Path | None,
    workflow: str,
    urls: Sequence[str],
    higher_is_better: bool,
) -> dict[str, Any]:
    columns = dict.fromkeys(name for run in runs for name in run.settings)
    return {
        "title": path.stem + (f" · {file.name}" if file is not None else ""),
        "workflow": plan.graph,
        "prompts": [str(one) for one in plan.inputs.prompts_or_none()],
        "seeds": [str(one) for one in plan.inputs.seeds_or_none()],
        "command": ["reprise", "batch", workflow, "--server", ",".join(urls), "--literal"],
        "columns": list(columns),
        "labels": plan.labels,
        "higherIsBetter": higher_is_better,
    }


@contextlib.contextmanager
def _progress(tally: BatchTally) -> Iterator[Callable[[], None]]:
    """Shows how far the set is: a bar in a terminal, a line once in a while in a log."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console, tell = terminal.err(), terminal.rare_notes()
    columns = (BarColumn(bar_width=30), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        whole = bars.add_task(tally.progress(), total=tally.total)

        def show() -> None:
            if console.is_terminal:
                bars.update(whole, description=tally.progress(), completed=tally.done)
            else:
                tell(tally.progress())

        yield show


def _watch(page: Path) -> None:
    import webbrowser

    if not webbrowser.open(page.absolute().as_uri()):
        terminal.note(f"there is no browser here; open {page}")


def _show_plan(plan: Plan, runs: Sequence[Run], urls: Sequence[str], out: Path) -> None:
    """The table of runs, where everything goes, and how long it will take."""
    from ..batch.journal import RUNS
    from ..renderers.comfyui.graph import title
    from ..storage.files import read_lines

    goes: list[tuple[str, str, str]] = []

    def add(name: str, sockets: Sequence[Any], what: str) -> None:
        for one in sockets:
            goes.append((name, str(one), f"{title(one.node, plan.graph[one.node])}: {what}"))

    for name, sockets in plan.columns.items():
        add(f"column {name}", sockets, "each row's own")
    for axis in plan.axes:
        values = [str(getattr(value, "path", value)) for value in axis.values[:8]]
        shown = ", ".join(values) or f"{axis.low:g} to {axis.high:g}"
        add(axis.name, axis.sockets, shown + (", …" if len(axis.values) > 8 else ""))
    if plan.sets_seed or any(run.sets_seed for run in runs[:1]):
        add("seed", plan.inputs.seeds, f"{plan.seeds} for each prompt")
    terminal.print_table("What goes where", ("name", "input", "node: values"), goes)
    columns = list(dict.fromkeys(name for run in runs[:SHOWN_RUNS] for name in run.settings))
    rows = [
        (i + 1, run.prompt or "", run.seed, *(run.settings.get(name, "") for name in columns))
        for i, run in enumerate(runs[:SHOWN_RUNS])
    ]
    terminal.print_table("Runs", ("", "prompt", "seed", *columns), rows, numbers=("", "seed"))
    if len(runs) > SHOWN_RUNS:
        terminal.out().print(f"… and {len(runs) - SHOWN_RUNS:,} more")
    done, seconds = set(), []
    if (out / RUNS).is_file():
        for row in read_lines(out / RUNS, needs={"run": str}):
            done.add(row["run"])
            seconds.append(float(row.get("seconds") or 0))
    left = sum(run.name not in done for run in runs)
    text = f"{len(runs):,} runs on {len(urls)} server{'s' if len(urls) > 1 else ''} into {out}"
    if done:
        text += f", {len(runs) - left:,} of them finished"
    if left and seconds:
        usual = sorted(seconds)[len(seconds) // 2]
        text += f"; about {duration(usual * left / len(urls))} at {usual:.1f} s a run, as in earlier ones"
    elif left:
        text += "; how long a run takes is not known before the first"
    terminal.out().print(escape(text), soft_wrap=True)


def _write_table(out: Path, rows: list[Row]) -> None:
    """What every picture is, for a spreadsheet. The journal has it all: a disk without room loses nothing."""
    from ..reports.gallery import table
    from ..storage.outputs import write_made

    if not rows:
        return
    head, lines = table(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([head, *([_cell(value) for value in line] for line in lines)])
    try:
        write_made(out, out / TABLE, text.getvalue())
    except RepriseError as error:
        terminal.note(f"no {TABLE}: {error}")


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value


def _print_summary(tally: BatchTally, rows: list[Row]) -> None:
    import time

    out = terminal.out()
    counts = [f"{tally.drawn:,} drawn"] * bool(tally.drawn) + [f"{tally.kept:,} kept"] * bool(tally.kept)
    counts += [f"{tally.judged:,} pictures judged"] * bool(tally.judged)
    seconds = time.monotonic() - tally.started
    out.print(f"[bold]{tally.total:,} runs[/bold]: {', '.join(counts)}, in {duration(seconds)}")
    servers: dict[str, int] = {}
    for row in rows:
        servers[row["server"]] = servers.get(row["server"], 0) + 1
    if len(servers) > 1:
        out.print("  " + " · ".join(f"{count:,} on {escape(url)}" for url, count in sorted(servers.items())))
