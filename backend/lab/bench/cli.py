"""`reprise lab bench NAME`: performance, as ratios measured in one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ...cli import options
from ...core.errors import BadInput

app = typer.Typer(no_args_is_help=True, help="Benchmarks: ratios, each measured in one run.")

Pairs = Annotated[int, typer.Option(metavar="N", callback=options.between(1), help="Runs of each side.")]
PromptsPerStep = Annotated[
    int | None,
    typer.Option(metavar="N", show_default="the config's", help="Prompts of a training step."),
]
Rewrites = Annotated[
    int | None,
    typer.Option(metavar="N", show_default="the config's", help="Rewrites of each prompt."),
]
Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", show_default="shapeworld's", help="The config of the training."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", parser=options.path, show_default="out/bench-NAME", help="Where to write."
    ),
]


@app.command()
def parm(
    per_task: options.PerTask = 8,
    best_of: options.BestOf = 16,
    pool: Annotated[
        int,
        typer.Option(
            metavar="N",
            callback=options.between(1),
            help="Candidates drawn of each prompt, a multiple of --best-of.",
        ),
    ] = 64,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Compare schedules on training prompts first, and take the best.")
    ] = False,
    previews: Annotated[
        str | None,
        typer.Option(
            metavar="JUDGE",
            help="Another table: candidates stopped where this vision-language judge sees no hope, beside "
            "halving at equal denoiser rows.",
        ),
    ] = None,
    timed: Annotated[
        int, typer.Option(metavar="N", callback=options.between(0), help="Prompts drawn for the wall times.")
    ] = 6,
    renderer: options.Renderer = "shapeworld",
    steps: options.Steps = None,
    seed: options.Seed = 0,
    out: Out = None,
    as_json: options.Json = False,
) -> None:
    """Cost and gain of pruning: full and pruned searches from the same seeds."""
    from ...factory import open_renderer, open_reward, parse_reward, renderer_settings
    from ...training.rollouts.prompts import read_prompts
    from . import parm, potential

    if previews is not None:
        parse_reward(previews)
        if sweep:
            raise BadInput("--previews makes another table, without --sweep; leave one of them out")
    if pool % best_of:
        raise BadInput(f"--pool must be a multiple of --best-of, got {pool} and {best_of}")
    drawing, scoring = renderer_settings(renderer, steps), open_reward("shapeworld")

    def measure(progress: Progress) -> dict[str, Any]:
        if previews is None:
            return parm.bench(
                renderer=open_renderer(drawing),
                judge=scoring,
                per_task=per_task,
                n=best_of,
                pool=pool,
                seed=seed,
                sweep=sweep,
                timed=timed,
                progress=progress,
            )
        return potential.compare(
            renderer=open_renderer(drawing),
            reward=scoring,
            judge=open_reward(previews),
            per_task=per_task,
            fitting_prompts=[one.prompt for one in read_prompts(f"shapeworld:{per_task}", "evaluate")],
            n=best_of,
            pool=pool,
            seed=seed,
            progress=progress,
        )

    _run("parm", measure, out, as_json)


@app.command()
def nodes(
    pairs: Pairs = 12,
    steps: options.Steps = 16,
    out: Out = None,
    as_json: options.Json = False,
) -> None:
    """What the nodes cost inside ComfyUI, beside its own (COMFYUI_PATH, COMFYUI_PYTHON)."""
    from . import nodes

    _run(
        "nodes", lambda progress: nodes.bench(pairs=pairs, steps=steps or 16, progress=progress), out, as_json
    )


@app.command()
def renderers(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            show_default="seven of today's",
            help="Tiny pipelines, as `lab pipelines` has.",
        ),
    ] = None,
    size: Annotated[
        int, typer.Option(metavar="PIXELS", callback=options.between(16), help="Width and height.")
    ] = 256,
    pairs: Pairs = 5,
    steps: options.Steps = 8,
    out: Out = None,
    as_json: options.Json = False,
) -> None:
    """Drawing with any pipeline of diffusers, beside the pipeline's own call and its VAE's decode."""
    from . import renderers

    def measure(progress: Progress) -> dict[str, Any]:
        return renderers.bench(names or (), pairs=pairs, steps=steps or 8, size=size, progress=progress)

    _run("renderers", measure, out, as_json)


@app.command()
def rewards(
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            metavar="NAME",
            show_default="both",
            help="image-reward or hps-v2.1; may be given twice.",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(metavar="N", callback=options.between(1), help="Pictures of a call.")
    ] = 4,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON", parser=options.path, help="A Python with the packages image-reward and hpsv2."
        ),
    ] = None,
    pairs: Pairs = 5,
    seed: options.Seed = 0,
    out: Out = None,
    as_json: options.Json = False,
) -> None:
    """Pictures per second and memory of the judges, with --reference beside the published packages.

    Random weights of full size; some gigabytes in the folder for temporary files.
    """
    from . import rewards

    rewards.check(judges or (), reference)

    def measure(progress: Progress) -> dict[str, Any]:
        return rewards.bench(
            judges=judges or (), reference=reference, images=images, pairs=pairs, seed=seed, progress=progress
        )

    _run("rewards", measure, out, as_json)


@app.command()
def grpo(
    config: Config = None,
    prompts_per_step: PromptsPerStep = None,
    rewrites: Rewrites = None,
    pairs: Pairs = 5,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    out: Out = None,
    as_json: options.Json = False,
) -> None:
    """A step of `train grpo`, beside a loop built the way RePrompt's script is; where its time goes."""
    from . import grpo

    settings = _grpo_settings(config, prompts_per_step, rewrites, steps, seed)
    _run("grpo", lambda progress: grpo.bench(settings, pairs=pairs, progress=progress), out, as_json)


@app.command()
def prip(
    config: Config = None,
    prompts_per_step: PromptsPerStep = None,
    rewrites: Rewrites = None,
    refiner: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", show_default="the config's, else ours", help="The refiner."),
    ] = None,
    pairs: Pairs = 5,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    out: Out = None,
    as_json: options.Json = False,
) -> None:
    """Refinements beside the decoder's own `generate`; where a step of `train ppo` spends its time."""
    from . import prip

    settings = _ppo_settings(config, prompts_per_step, rewrites, steps, seed, refiner)
    _run("prip", lambda progress: prip.bench(settings, pairs=pairs, progress=progress), out, as_json)


Progress = Callable[[str, int, int], None]  # progress: stage, done, total


def _run(name: str, measure: Callable[[Progress], dict[str, Any]], out: Path | None, as_json: bool) -> None:
    """Unlike an evaluation, a stopped benchmark keeps nothing: its two sides are measured in one run."""
    from ...cli import results, terminal

    with results.claimed(f"lab bench {name}", out or Path("out") / f"bench-{name}") as folder:
        with terminal.quiet_stdout(as_json), terminal.stage_progress() as start:
            result = measure(start(""))
        results.finish(result, folder, as_json)


def _grpo_settings(
    path: Path | None, prompts: int | None, rewrites: int | None, steps: int | None, seed: int
) -> dict[str, Any]:
    """A GrpoConfig as JSON: the file's, with the options on top.

    The batch size is the largest one, up to the file's, that divides the rows of a step.
    """
    from ...core.config import load_config
    from ...factory import parse_renderer
    from ...training import shipped_config
    from ...training.grpo.config import GrpoConfig

    path = path or shipped_config("grpo", "shapeworld")
    given = {"prompts_per_step": prompts, "rewrites": rewrites, "renderer.steps": steps, "seed": seed}
    words = [f"{key}={value}" for key, value in given.items() if value is not None]
    plain = load_config(GrpoConfig, path)
    rows = (prompts or plain.prompts_per_step) * (rewrites or plain.rewrites)
    batch = max(size for size in range(1, plain.batch_size + 1) if rows % size == 0)
    config = load_config(GrpoConfig, path, [*words, f"batch_size={batch}"])
    if parse_renderer(config.renderer.name).url:
        raise BadInput(
            "the loop to compare with calls a diffusers pipeline, and a ComfyUI server has none; give a "
            "config whose renderer has one"
        )
    return config.model_dump(mode="json")


def _ppo_settings(
    path: Path | None,
    prompts: int | None,
    rewrites: int | None,
    steps: int | None,
    seed: int,
    refiner: str | None,
) -> dict[str, Any]:
    """A PpoConfig as JSON: the file's, with the options on top.

    The number of minibatches is the largest one, up to the file's, that divides the rows of a step.
    """
    from ...core.config import load_config
    from ...factory import parse_renderer
    from ...training import shipped_config
    from ...training.ppo.config import PpoConfig

    init = refiner or ("shapeworld" if path is None else None)
    path = path or shipped_config("ppo", "shapeworld")
    given = {
        "prompts_per_step": prompts,
        "rewrites": rewrites,
        "renderer.steps": steps,
        "seed": seed,
        "init": init,
    }
    words = [f"{key}={value}" for key, value in given.items() if value is not None]
    plain = load_config(PpoConfig, path)
    if rewrites == 1:  # a group of one has no baseline
        words.append("group_baseline=false")
    rows = (prompts or plain.prompts_per_step) * (rewrites or plain.rewrites)
    parts = max(number for number in range(1, plain.minibatches + 1) if rows % number == 0)
    config = load_config(PpoConfig, path, [*words, f"minibatches={parts}"])
    if parse_renderer(config.renderer.name).url:
        raise BadInput(
            "a step's floor is measured on a diffusers pipeline, and a ComfyUI server has none; give a "
            "config whose renderer has one"
        )
    return config.model_dump(mode="json")
