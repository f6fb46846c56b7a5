"""The long commands at their smallest settings: what each reads, what it writes, how one goes on with it.

All work in the folder of a case, with relative paths, so that two runs of a command leave the same bytes.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from ..backend.training import pictures
from ..fake_comfyui import GRAPH
from .faults import Fault
from .process import run

COLORS, THINGS = ("red", "blue", "green"), ("star", "ring", "cross")


@dataclass(frozen=True)
class Command:
    """A command line, and the same to go on with, where that is another.

    `out` is what it writes: a folder, or a file with folders beside it. `result`: the files that a run
    without faults leaves, and that every other run must leave as well. `kept`: files of a run half-way from
    which it goes on. `half`: where it is killed to leave it half-way; None, at six tenths of its operations.
    """

    name: str
    line: str
    out: str
    result: tuple[str, ...]
    kept: tuple[str, ...] = ()
    again: str = ""
    half: Fault | None = None
    claimed: tuple[str, ...] = ()
    asks: str = ""
    other: str = ""


SAVING = "device=cpu save_every=1"
TRAINED = ("final/**/*", "best/**/*", "metrics.jsonl", "evaluations.jsonl", "rollouts/rollouts.jsonl")
RUN = ("metrics.jsonl", "config.yaml", "checkpoints/config.yaml", "checkpoints/*/trainer_state.json")


def _checkpoint(*names: str) -> tuple[str, ...]:
    return (*RUN, *(f"checkpoints/*/{name}" for name in names))


# What transformers saves, and what the trainings with a loop of their own save.
TRANSFORMERS = _checkpoint("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
OWN_LOOP = _checkpoint("weights.safetensors", "optimizer.safetensors")
ROUNDS = (
    "config.yaml",
    "checkpoints/config.yaml",
    "evaluations.jsonl",
    "rounds/*/rollouts.jsonl",
    "rounds/*/preferences/*.jsonl",
    "rounds/1/metrics.jsonl",
)


def _training(
    name: str, settings: str, kept: tuple[str, ...], rounds: bool = False, asks: str = ""
) -> Command:
    method, out = (
        name.partition(",")[0].removesuffix("-rounds"),
        f"runs/{name.replace(', ', '-').replace(' ', '-')}",
    )
    line = f"train {method} {settings} {SAVING} --out {out}"
    # Killed when it has taken the third step: two are in a checkpoint.
    half = None if rounds else Fault("SIGKILL", at=2, name=f"{out}/metrics.jsonl")
    return Command(
        f"train {name}",
        line,
        out,
        tuple(f"{out}/{one}" for one in TRAINED),
        tuple(f"{out}/{one}" for one in kept),
        f"train {method} --resume {out}",
        half,
        tuple(f"{out}/{one}" for one in ("metrics.jsonl", "final/mine.txt", "checkpoints/mine.txt")),
        asks,
    )


PLAIN = "gradient_checkpointing=false"
ROLLOUTS = (
    "prompts=prompts.txt eval_prompts=one.txt renderer.name=fake held_out=[blueness] prompts_per_step=1 "
    "rewrites=2 batch_size=2 max_steps=3 eval_every=3 patience=0"
)

COMMANDS = [
    Command(
        "render",
        "render --prompts prompts.txt --renderer fake --steps 4 --best-of 4 --rewriter template "
        "--judge redness --out out",
        "out",
        ("out/*/record.json", "out/*/best.png", "out/*/candidates/*", "out/*/previews/*", "out/index.html"),
        ("out/*/record.json", "out/*/candidates/*.png", "out/*/best.png", "out/*/previews/*.png"),
        claimed=("out/index.html",),
        other="render --prompts prompts.txt --renderer fake --steps 4 --best-of 4 --rewriter template "
        "--judge redness --seed 9 --out out",
    ),
    Command(
        "render, one prompt",
        "render 'a red circle' --renderer fake --steps 3 --best-of 2 --rewriter template --reflect 1 "
        "--out one",
        "one",
        ("one/record.json", "one/best.png", "one/candidates/*", "one/index.html"),
        ("one/candidates/*.png",),
        claimed=("one/index.html", "one/best.png", "one/record.json", "one/candidates/00-0.png"),
        other="render 'a blue star' --renderer fake --steps 3 --best-of 2 --rewriter template --out one",
    ),
    _training(
        "sft",
        f"model=shapeworld data=sft.jsonl max_steps=3 batch_size=2 log_every=1 max_length=256 "
        f"max_new_tokens=64 {PLAIN}",
        TRANSFORMERS,
    ),
    _training(
        "grpo",
        f"model=shapeworld {ROLLOUTS} rewards='{{redness: 1.0, structure: 0.5}}' max_new_tokens=96 {PLAIN}",
        (*TRANSFORMERS, "rollouts/rollouts.jsonl", "evaluations.jsonl"),
    ),
    _training(
        "dpo",
        f"model=shapeworld preferences=store max_steps=3 batch_size=2 log_every=1 max_length=256 {PLAIN}",
        TRANSFORMERS,
    ),
    _training(
        "dpo-rounds",
        "model=shapeworld max_steps=1 batch_size=2 log_every=1 max_length=256 "
        "rounds.count=2 rounds.prompts=two.txt rounds.eval_prompts=one.txt rounds.rewrites=2 "
        "rounds.rewards='{redness: 1.0, structure: 0.1}' rounds.renderer.name=fake "
        f"rounds.max_new_tokens=96 rounds.patience=0 {PLAIN}",
        (*ROUNDS, "rounds/1/final/model.safetensors"),
        rounds=True,
    ),
    _training(
        "ppo",
        f"init=shapeworld {ROLLOUTS} rewards='{{redness: 1.0}}' max_new_tokens=16",
        (
            *_checkpoint("encoder.safetensors", "critic.safetensors", "optimizer.safetensors"),
            "rollouts/rollouts.jsonl",
            "evaluations.jsonl",
        ),
    ),
    _training(
        "diffusion-dpo",
        "model=shapeworld preferences=store max_steps=3 batch_size=2 accumulation=1 "
        f"lora.r=2 eval_share=0.4 eval_every=2 {PLAIN}",
        (*_checkpoint("adapter.safetensors", "optimizer.safetensors"), "evaluations.jsonl"),
    ),
    _training(
        "diffusion-dpo-rounds",
        "model=shapeworld max_steps=1 batch_size=2 accumulation=1 lora.r=2 "
        "rounds.count=2 rounds.prompts=two.txt rounds.eval_prompts=one.txt rounds.images=2 "
        "rounds.eval_images=1 rounds.rewards='{redness: 1.0}' rounds.renderer.steps=2 "
        f"rounds.patience=0 {PLAIN}",
        (*ROUNDS, "rounds/1/final/lora.safetensors"),
        rounds=True,
    ),
    _training(
        "judge",
        f"model=embedded-base data=judge.jsonl max_steps=3 batch_size=2 eval_every=2 {PLAIN}",
        (*OWN_LOOP, "evaluations.jsonl"),
    ),
    _training(
        "prip-decoder",
        f"preset=shapeworld train_image=true log=log/log.jsonl max_steps=3 batch_size=2 eval_every=2 {PLAIN}",
        (*OWN_LOOP, "evaluations.jsonl"),
    ),
    _training(
        "prip-encoder",
        "model=shapeworld rewards='{shapeworld: 1.0}' log=log/log.jsonl max_steps=3 "
        f"batch_size=2 eval_every=2 {PLAIN}",
        (*OWN_LOOP, "evaluations.jsonl"),
    ),
    Command(
        "data pictures",
        "data pictures prompts.jsonl --renders 2 --renderer fake --steps 4 --reward redness "
        "--out pictures.jsonl",
        "pictures.jsonl",
        ("pictures.jsonl", "pictures.jsonl.pictures/**/*.png"),
        ("pictures.jsonl.pictures/**/*.png", "pictures.jsonl.pictures/**/*.json"),
        claimed=("pictures.jsonl", "pictures.jsonl.pictures/mine.png"),
    ),
    Command(
        "data judge",
        "data judge prompts.jsonl --renders 2 --renderer fake --steps 4 --look 2 --reward redness "
        "--out questions.jsonl",
        "questions.jsonl",
        ("questions.jsonl", "questions.jsonl.pictures/**/*.png", "questions.jsonl.rollouts.jsonl"),
        ("questions.jsonl.pictures/**/*.png", "questions.jsonl.pictures/**/*.json*"),
        claimed=("questions.jsonl", "questions.jsonl.pictures/mine.png"),
    ),
    Command(
        "data users",
        "data users --out users.jsonl --per-task 1 --each 2 --drawn",
        "users.jsonl",
        ("users.jsonl", "users.jsonl.pictures/*.png"),
        ("users.jsonl.pictures/*.png",),
        claimed=("users.jsonl", "users.jsonl.pictures/000001.png"),
    ),
    Command(
        "preferences mine",
        "preferences mine rendered --store mined --margin 0 --by prompt",
        "mined",
        ("mined/*.jsonl", "mined/**/*.png"),
        ("mined/**/*.png",),
        claimed=("mined/pairs.jsonl", "mined/images/mine.png"),
    ),
    Command(
        "preferences import",
        "preferences import table.csv --store imported --margin 0 --by prompt",
        "imported",
        ("imported/*.jsonl", "imported/**/*.png"),
        ("imported/**/*.png",),
        claimed=("imported/pairs.jsonl", "imported/images/mine.png"),
    ),
    Command(
        "evaluate shapeworld",
        "evaluate shapeworld --per-task 1 --seeds 1 --best-of 2 --reflect 1 --renderer fake --steps 4 "
        "--task counting --out e-shapeworld",
        "e-shapeworld",
        ("e-shapeworld/result.json",),
        ("e-shapeworld/partial.jsonl", "e-shapeworld/partial-settings.json"),
        other="evaluate judges redness --data judge.jsonl --out e-shapeworld",
        claimed=("e-shapeworld/result.json", "e-shapeworld/index.html"),
    ),
    Command(
        "evaluate rewriters",
        "evaluate rewriters t=template r=reprompt --per-task 1 --seeds 1 --renderer fake --task counting "
        "--task position --judge redness --out e-rewriters",
        "e-rewriters",
        ("e-rewriters/result.json",),
        ("e-rewriters/rewrites.jsonl", "e-rewriters/pictures/**/*.png"),
        claimed=("e-rewriters/result.json", "e-rewriters/index.html"),
    ),
    Command(
        "evaluate search",
        "evaluate search rows.yaml --per-task 1 --seeds 1 --renderer fake --steps 4 --task counting "
        "--task position --judge redness --out e-search",
        "e-search",
        ("e-search/result.json",),
        ("e-search/pictures.jsonl",),
        claimed=("e-search/result.json", "e-search/index.html"),
    ),
    Command(
        "evaluate judges",
        "evaluate judges redness shapeworld --data judge.jsonl --out e-judges",
        "e-judges",
        ("e-judges/result.json",),
        ("e-judges/partial.jsonl",),
        claimed=("e-judges/result.json", "e-judges/index.html"),
    ),
    Command(
        "data rewrites",
        "data rewrites prompts.txt --rewriter chat:URL --variants 2 --eval-share 0.3 --out examples.jsonl",
        "examples.jsonl",
        ("examples.jsonl", "examples.eval.jsonl"),
        ("examples.jsonl.answers/*.jsonl",),
        claimed=("examples.jsonl", "examples.eval.jsonl"),
        asks="chat",
    ),
    Command(
        "render, chat",
        "render --prompts prompts.txt --renderer fake --steps 4 --best-of 2 --variants 2 --rewriter chat:URL "
        "--judge redness --out chatted",
        "chatted",
        ("chatted/*/record.json", "chatted/*/best.png", "chatted/*/candidates/*", "chatted/index.html"),
        asks="chat",
    ),
    Command(
        "render, ComfyUI",
        "render --prompts prompts.txt --renderer comfyui:workflow.json@URL --best-of 2 --rewriter template "
        "--judge redness --out drawn",
        "drawn",
        ("drawn/*/record.json", "drawn/*/best.png", "drawn/*/candidates/*", "drawn/index.html"),
        asks="comfyui",
    ),
    Command(
        "batch",
        "batch workflow.json --prompts prompts.txt --server URL --seeds 2 --judge redness --patience 5 "
        "--out batch",
        "batch",
        ("batch/pictures/*.png", "batch/index.html"),
        (
            "batch/set.json",
            "batch/runs.jsonl",
            "batch/queued.jsonl",
            "batch/pictures/*.png",
        ),
        claimed=("batch/index.html", "batch/runs.jsonl", "batch/pictures"),
        asks="comfyui",
        other="render --prompts prompts.txt --renderer fake --steps 4 --best-of 2 --rewriter template "
        "--judge redness --out batch",
    ),
    Command(
        "render, served judge",
        "render --prompts prompts.txt --renderer fake --steps 4 --best-of 2 --rewriter template "
        "--judge remote:redness@URL --out judged",
        "judged",
        ("judged/*/record.json", "judged/*/best.png", "judged/*/candidates/*", "judged/index.html"),
        asks="rewards",
    ),
    _training(
        "grpo, served judge",
        f"model=shapeworld {ROLLOUTS} rewards='{{\"remote:redness@URL\": 1.0, structure: 0.5}}' "
        f"max_new_tokens=96 {PLAIN}",
        (),
        asks="rewards",
    ),
    Command(
        "data pictures, ComfyUI",
        "data pictures prompts.jsonl --renders 2 --renderer comfyui:workflow.json@URL --reward redness "
        "--out fetched.jsonl",
        "fetched.jsonl",
        ("fetched.jsonl", "fetched.jsonl.pictures/**/*.png"),
        asks="comfyui",
    ),
]


def make_inputs(folder: Path) -> None:
    """What the commands read, made once by commands of their own."""
    wishes = ["a red circle", "a blue star", "three rings"]
    (folder / "prompts.txt").write_text("".join(f"{one}\n" for one in wishes))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in wishes))
    (folder / "two.txt").write_text("a red circle\na blue star\n")
    (folder / "one.txt").write_text("a green heart\n")
    rows = [
        {"prompt": f"a {color} {thing}", "reason": f"The {color} one.", "rewrite": f"a large {color} {thing}"}
        for color in COLORS
        for thing in THINGS
    ]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.yaml").write_text(
        "one: {best_of: 2, prune: none}\ntwo: {best_of: 2, prune: none, judge: redness}\n"
    )
    (folder / "workflow.json").write_text(json.dumps(GRAPH))
    log = pictures.make(folder / "log", grounds=("beige", "white"))
    table = ["image,prompt,score"]
    for number, row in enumerate(map(json.loads, log.read_text().splitlines()[:8])):
        table.append(f"log/{row['image']},{row['prompt']},{number}")
    (folder / "table.csv").write_text("\n".join(table) + "\n")
    for line in (
        "render --prompts prompts.txt --renderer fake --rewriter reprompt --best-of 4 --judge redness "
        "--prune none --out rendered",
        "preferences mine rendered --store store --margin 0 --by prompt",
        "data judge shapeworld:2 --renders 2 --renderer fake --steps 4 --look 2 --reward redness "
        "--test-share 0.4 --calibration-share 0.2 --out judge.jsonl",
    ):
        ended = run(shlex.split(line), folder)
        assert ended.code == 0, f"reprise {line}\n{ended.stderr}"
