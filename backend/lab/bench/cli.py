"""`reprise bench`: performance, as ratios measured in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...cli import options
from ...core.errors import BadInput

NAMES = ("parm", "nodes", "rewards", "grpo", "prip")


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help=", ".join(NAMES) + ".")],
    per_task: Annotated[int, typer.Option(metavar="N", help="Held-out prompts of each task.")] = 8,
    best_of: Annotated[int, typer.Option("--best-of", metavar="N", help="Candidates of a search.")] = 16,
    pool: Annotated[
        int, typer.Option(metavar="N", help="Candidates drawn of each prompt, a multiple of --best-of.")
    ] = 64,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Compare schedules on train prompts first, and take the best.")
    ] = False,
    previews: Annotated[
        str | None,
        typer.Option(
            metavar="JUDGE",
            help="parm: another table, of stopping what this vision-language judge "
            "gives no hope, beside halving at equal rows.",
        ),
    ] = None,
    timed: Annotated[int, typer.Option(metavar="N", help="Prompts drawn for the wall times.")] = 6,
    seed: Annotated[int, typer.Option(help="Of the prompts chosen and of every picture.")] = 0,
    pairs: Annotated[
        int | None, typer.Option(metavar="N", show_default="nodes: 12, others: 5", help="Runs of each side.")
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="NAME", show_default="all", help="rewards: image-reward, hps-v2.1."),
    ] = None,
    images: Annotated[int, typer.Option(metavar="N", help="rewards: pictures of a call.")] = 4,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="PYTHON", help="rewards: a Python that has packages image-reward and hpsv2."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="shapeworld's", help="Of train grpo; prip: of train ppo."),
    ] = None,
    prompts_per_step: Annotated[
        int | None, typer.Option(metavar="N", show_default="the config's", help="Prompts of a step.")
    ] = None,
    rewrites: Annotated[
        int | None, typer.Option(metavar="N", show_default="the config's", help="Rewrites of each.")
    ] = None,
    refiner: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", show_default="the config's, else ours", help="prip: the refiner."),
    ] = None,
    renderer: options.Renderer = "shapeworld",
    steps: options.Steps = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", show_default="out/bench-NAME", help="Where to write.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """parm: what pruning saves and keeps, full and pruned from the same seeds.

    nodes: what our nodes cost inside ComfyUI (COMFYUI_PATH, COMFYUI_PYTHON) beside its own.

    rewards: pictures per second and memory of the judges, beside the published packages with --reference;
    random weights of full size, some gigabytes in the folder for temporary files.

    grpo: a training step, beside a loop built the way RePrompt's script is; --steps are ours of the renderer.

    prip: refinements beside the decoder's own generate; where a PPO step's time goes, and its floor.
    """
    from ...cli import results
    from ...factory import check_judge, find_renderer, make_reward
    from ...storage.files import prepare_folder
    from . import grpo, nodes, parm, potential, prip, rewards

    results.check_name("bench", name, NAMES)
    results.check_at_least_one(per_task=per_task, best_of=best_of, pool=pool, images=images)
    if pairs is not None:
        results.check_at_least_one(pairs=pairs)
    if timed < 0:
        raise BadInput(f"--timed must be 0 or more, got {timed}")
    options.check_seed(seed)
    if previews is not None:
        check_judge(previews)
        if name != "parm" or sweep:
            raise BadInput("--previews is another table of bench parm, without --sweep; leave one out")
        if pool % best_of:
            raise BadInput(f"--pool must be a multiple of --best-of, got {pool} and {best_of}")
    drawing = find_renderer(renderer, steps) if name == "parm" else None
    if name == "rewards":
        rewards.check(judges or (), reference)
    settings = _grpo_settings(config, prompts_per_step, rewrites, steps, seed) if name == "grpo" else {}
    if name == "prip":
        settings = _ppo_settings(config, prompts_per_step, rewrites, steps, seed, refiner)
    out = prepare_folder(out or Path("out") / f"bench-{name}")
    with results.progress_bars(as_json, out) as tell:
        if name == "nodes":
            result = nodes.bench(pairs=pairs or 12, steps=steps or 16, tell=tell)
        elif name == "rewards":
            result = rewards.bench(
                judges=judges or (),
                reference=reference,
                images=images,
                pairs=pairs or 5,
                seed=seed,
                tell=tell,
            )
        elif name == "grpo":
            result = grpo.bench(settings, pairs=pairs or 5, tell=tell)
        elif name == "prip":
            result = prip.bench(settings, pairs=pairs or 5, tell=tell)
        else:
            assert drawing
            scoring = make_reward("shapeworld")
            if previews is not None:
                from ...training.rollouts.prompts import read_prompts

                result = potential.compare(
                    renderer=drawing(),
                    reward=scoring,
                    judge=make_reward(previews),
                    per_task=per_task,
                    aside=[one.prompt for one in read_prompts(f"shapeworld:{per_task}", "evaluate")],
                    n=best_of,
                    pool=pool,
                    seed=seed,
                    tell=tell,
                )
            else:
                result = parm.bench(
                    renderer=drawing(),
                    judge=scoring,
                    per_task=per_task,
                    n=best_of,
                    pool=pool,
                    seed=seed,
                    sweep=sweep,
                    timed=timed,
                    tell=tell,
                )
    results.finish(result, out, as_json)


def _grpo_settings(
    path: Path | None, prompts: int | None, rewrites: int | None, steps: int | None, seed: int
) -> dict[str, Any]:
    """A GrpoConfig's, as JSON: of the file, with what was asked for on top, in batches as large as the file's
    at most."""
    from ...core.config import load_config
    from ...training import shipped_config
    from ...training.grpo.config import GrpoConfig

    path = path or shipped_config("grpo", "shapeworld")
    asked = {"prompts_per_step": prompts, "rewrites": rewrites, "renderer.steps": steps, "seed": seed}
    words = [f"{key}={value}" for key, value in asked.items() if value is not None]
    plain = load_config(GrpoConfig, path)
    rows = (prompts or plain.prompts_per_step) * (rewrites or plain.rewrites)
    batch = max(size for size in range(1, plain.batch_size + 1) if rows % size == 0)
    config = load_config(GrpoConfig, path, [*words, f"batch_size={batch}"])
    if config.renderer.elsewhere:
        raise BadInput(
            "the loop to compare with calls a diffusers pipeline, and a ComfyUI server is none; "
            "give a config that draws with one"
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
    """A PpoConfig's, likewise, in as many minibatches as the file's at most."""
    from ...core.config import load_config
    from ...training import shipped_config
    from ...training.ppo.config import PpoConfig

    init = refiner or ("shapeworld" if path is None else None)
    path = path or shipped_config("ppo", "shapeworld")
    asked = {
        "prompts_per_step": prompts,
        "rewrites": rewrites,
        "renderer.steps": steps,
        "seed": seed,
        "init": init,
    }
    words = [f"{key}={value}" for key, value in asked.items() if value is not None]
    plain = load_config(PpoConfig, path)
    if rewrites == 1:  # with nothing to be compared with
        words.append("group_baseline=false")
    rows = (prompts or plain.prompts_per_step) * (rewrites or plain.rewrites)
    parts = max(number for number in range(1, plain.minibatches + 1) if rows % number == 0)
    config = load_config(PpoConfig, path, [*words, f"minibatches={parts}"])
    if config.renderer.elsewhere:
        raise BadInput(
            "a step's floor is measured on a diffusers pipeline, and a ComfyUI server is none; "
            "give a config that draws with one"
        )
    return config.model_dump(mode="json")
