"""`reprise evaluate`: benchmarks with 95 % confidence intervals, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import BadInput
from . import options
from .evaluate_judge import evaluate_judges

NAMES = ("shapeworld", "judge")
OF_THE_CHAIN = ("best_of", "prune", "reflect", "variants", "rewriter")  # of no use to --compare and --rows


def evaluate(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="BENCHMARK", show_default=False, help=", ".join(NAMES) + ".")
    ],
    judges: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[JUDGE…]",
            show_default=False,
            help="Of the benchmark judge: what is measured, vlm:FOLDER or any reward.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Of the benchmark judge: its questions, as "
            "`reprise judge-data` makes them; those of the split test are asked.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="all",
            help="Only this task, may be given several times: "
            "single-object, two-object, counting, colors, position, color-attribution.",
        ),
    ] = None,
    per_task: Annotated[int, typer.Option(metavar="N", help="Held-out prompts of each task.")] = 66,
    seeds: Annotated[int, typer.Option(metavar="N", help="Repetitions of each prompt.")] = 4,
    best_of: Annotated[int, typer.Option("--best-of", metavar="N", help="Candidates of a search.")] = 8,
    prune: Annotated[
        str | None,
        typer.Option(
            metavar=options.PRUNING,
            show_default="halving, or none without previews",
            help="How the pruned row stops candidates.",
        ),
    ] = None,
    reflect: Annotated[int, typer.Option(metavar="ROUNDS", help="Rounds of mending at most.")] = 2,
    variants: Annotated[int, typer.Option(metavar="K", help="Rewrites that the candidates share.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the prompts chosen and of every picture.")] = 0,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=REWRITER,…",
            show_default=False,
            help="A row of a table of rewriters "
            "instead, one picture of each greedy rewrite; may be given several times. A rewriter is "
            "what --rewriter takes, with commas where a method was trained from several seeds.",
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml",
            show_default=False,
            help="A table of these rows instead, each "
            "a renderer's LoRA, a rewriter, a judge and a search, with lists for several training "
            "seeds, such as `DPO + PARM: {lora: [A, B], best_of: 8, prune: halving}`.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="the best of --compare, the first of --rows",
            help="The row that all others' gains are over.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="shapeworld-strict",
            help="Reward whose mean the rows of --compare and --rows are.",
        ),
    ] = None,
    renderer: options.Renderer = "shapeworld",
    rewriter: options.Rewriter = None,
    steps: options.Steps = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", show_default="out/evaluate-, compare- or rows-BENCHMARK", help="Where to write."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure how much better each part of the chain, or each of several rewriters, makes pictures; or how
    right judges are about pictures and previews.

    Called again, it goes on.
    """
    from ..factory import check_judge, find_renderer, find_rewriter, make_reward, reward_mark
    from ..storage.files import prepare_folder
    from . import results
    from .options import choose_prune, parse_methods

    results.check_name("benchmark", name, NAMES)
    if name == "judge":
        _refuse_others(context, ("name", "judges", "data", "seed", "out", "as_json"))
        options.check_seed(seed)
        return evaluate_judges(judges or [], data, out, seed, as_json)
    if judges or data is not None:
        raise BadInput(
            "judges and --data belong to the benchmark judge; expected reprise evaluate judge "
            "JUDGE… --data FILE"
        )
    from ..evaluation import rewriters as ablation
    from ..evaluation import shapeworld
    from ..evaluation import tables as chains

    tasks = shapeworld.select_tasks(task or [])
    results.check_at_least_one(per_task=per_task, seeds=seeds, best_of=best_of, variants=variants)
    options.check_seed(seed)
    prune = choose_prune(prune, renderer)
    options.check_reflect(reflect)
    methods = parse_methods(compare or [])
    table = chains.read_rows(rows) if rows is not None else {}
    if methods and table:
        raise BadInput("--compare and --rows are two tables; give one of them")
    if methods or table:
        _refuse_the_chains(context, "compare" if methods else "rows")
    if methods:
        ablation.check_rows(methods, baseline)
    for option, value in (("baseline", baseline), ("judge", judge)):
        if value is not None and not (methods or table):
            raise BadInput(f"--{option} is of --compare and --rows; give one of these, or leave it out")
    scoring = make_reward((judge or "shapeworld-strict") if methods or table else "shapeworld")
    makers = chains.RoleLoaders(
        lambda lora: find_renderer(renderer, steps, lora=Path(lora) if lora else None)(),
        lambda one: find_rewriter(one)(),
        make_reward,
        reward_mark,
    )
    for row in table.values():  # names that there are not are refused before the first picture
        for one in row.trainings():
            find_renderer(renderer, steps, lora=Path(one.lora) if one.lora else None)
            for writing in filter(None, (one.rewriter, one.corrector)):
                find_rewriter(writing)
            choose_prune(row.prune, renderer)
            for judging in filter(None, (one.judge, one.previews)):
                check_judge(judging)
    rewriters = {one: find_rewriter(one) for given in methods.values() for one in given}
    drawing, rewriting = find_renderer(renderer, steps), find_rewriter(rewriter)
    kind = "compare" if methods else "rows" if table else "evaluate"
    out = prepare_folder(out or Path("out") / f"{kind}-{name}")
    with results.progress_bars(as_json, out) as tell:
        if methods:
            result = ablation.compare_rewriters(
                methods=methods,
                rewriters=rewriters,
                renderer=drawing(),
                folder=out,
                tasks=tasks,
                judge=scoring,
                per_task=per_task,
                seeds=seeds,
                seed=seed,
                baseline=baseline,
                tell=tell,
            )
        elif table:
            result = chains.evaluate_rows(
                rows=table,
                makers=makers,
                measure=scoring,
                folder=out,
                per_task=per_task,
                seeds=seeds,
                seed=seed,
                tasks=tasks,
                baseline=baseline,
                tell=tell,
            )
        else:
            result = shapeworld.evaluate_chain(
                rewriter=rewriting(),
                template=find_rewriter("template")(),
                renderer=drawing(),
                kept=out,
                judge=scoring,
                per_task=per_task,
                seeds=seeds,
                best_of=best_of,
                prune=prune,
                rounds=reflect,
                variants=variants,
                seed=seed,
                tasks=tasks,
                tell=tell,
            )
    results.finish(result, out, as_json)


def _refuse_others(context: typer.Context, known: tuple[str, ...]) -> None:
    """Raises BadInput for an option that was given and is none of `known`."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in known and source is not None and source.name != "DEFAULT":
            raise BadInput(f"--{name.replace('_', '-')} has no use with this benchmark; leave it out")


def _refuse_the_chains(context: typer.Context, table: str) -> None:
    """Raises BadInput for an option that was given and would do nothing."""
    for name in OF_THE_CHAIN:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            why = {"compare": "which draws one picture of each greedy rewrite", "rows": "whose rows say it"}
            raise BadInput(
                f"--{name.replace('_', '-')} has no use with --{table}, {why[table]}; leave it out"
            )
