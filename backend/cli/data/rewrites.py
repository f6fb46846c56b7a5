"""`reprise data rewrites`: examples for `reprise train sft`, written by any chat model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...core.errors import FEW, BadInput, Interrupted, RepriseError, Unsupported
from .. import checks, options
from ..renderer_options import renderer_options

if TYPE_CHECKING:
    from ...core.interfaces import Rewriter, TextReward
    from ...rewriters.rows import RowRewriter
    from ...training.rollouts.prompts import TrainingPrompt
    from ...training.sft.data import RewriteExample

AT_ONCE = 32  # pictures drawn, judged and kept before the next
PICTURES_GB = 20  # kept on disk; beyond it those used longest ago go


@renderer_options
def rewrites(
    prompts: options.PromptSource,
    rewriter: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Who writes: chat:MODEL@URL (OpenAI-compatible; the key is read from REPRISE_ENDPOINT_KEY), "
            "a folder of weights or Hugging Face name, or reprompt (embedded).",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            parser=options.path,
            help="The examples; the answers as they came go into FILE.answers/.",
        ),
    ] = Path("sft.jsonl"),
    variants: Annotated[
        int, typer.Option(metavar="K", callback=options.between(1, 256), help="Rewrites of each prompt.")
    ] = 1,
    retries: Annotated[
        int,
        typer.Option(
            metavar="N", callback=options.between(0, 256), help="Further answers at most, for unusable ones."
        ),
    ] = 2,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME",
            help="Use only rewrites with the full score of this text reward: length (15 to 77 words) or "
            "structure. May be given several times.",
        ),
    ] = None,
    eval_share: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Hold out about this share of the prompts, such as 0.05."),
    ] = 0.0,
    eval_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=options.path,
            show_default="sft.eval.jsonl",
            help="The held-out prompts' examples.",
        ),
    ] = None,
    keep_best: Annotated[
        bool,
        typer.Option(
            "--keep-best",
            help="Draw all rewrites; keep each prompt's best by --reward, if it is "
            "no worse than the prompt as typed.",
        ),
    ] = False,
    renderer: options.DataRenderer = None,
    reward: options.WeightedRewards = None,
    images: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            callback=options.between(1, 64),
            show_default="1",
            help="Pictures of each rewrite, from the same seeds for all rewrites of a prompt.",
        ),
    ] = None,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    *,
    drawing_options: dict[str, Any],
) -> None:
    """Have a chat model write the examples that `reprise train sft` learns from.

    Each line of FILE is JSON: "prompt", what a user types; "reason", how the
    scene is rehearsed; "rewrite", the prompt to draw. `train sft` also reads
    "critique", what was wrong with an earlier picture, if a line has one.

    An answer that cannot be read is counted, asked for again, and never becomes
    an example. Called again, the command goes on where it stopped and asks for
    nothing twice; with more prompts or variants, it asks for those.
    --renderer, --reward, --images and --steps are for --keep-best.
    """
    from ...factory import open_rewriter, parse_rewriter
    from ...storage.files import prepare_folder
    from ...storage.outputs import check_made, claim
    from ...training.sft.answers import AnswerFolder
    from ...training.sft.make_data import ExampleMaker, held_out
    from .. import terminal

    asked = _prompts(prompts)
    if eval_share:
        eval_out = eval_out or out.with_name(f"{out.stem}.eval{out.suffix}")
    pictures = 1 if images is None else images
    _check(eval_share, out, eval_out, pictures, seed)
    if not keep_best and any((renderer, reward, images, steps, drawing_options)):
        raise BadInput(
            "--renderer and its options, --reward, --images and --steps are for pictures; add --keep-best"
        )
    writer, passing = parse_rewriter(rewriter), _filters(filters or [])
    if not writer.capabilities.reasons:
        raise Unsupported(
            f"--rewriter {rewriter} gives no reasons to learn; take chat:MODEL@URL, or the weights of a "
            "chat model"
        )
    folder = out.with_name(f"{out.name}.answers")
    choose = _chooser(folder, renderer, reward, pictures, steps, seed, drawing_options) if keep_best else None
    targets = list(filter(None, (out, eval_out)))
    for path in targets:
        prepare_folder(path.parent)
    with claim(folder, "data rewrites", [path.absolute() for path in targets]):
        answers = AnswerFolder(folder, rewriter, seed)
        check_made(folder, *targets)
        maker = ExampleMaker(asked, answers, variants=variants, retries=retries, filters=passing)
        with terminal.quiet_stdout(as_json), terminal.stage_progress() as start:
            tell = start(prompts)
            try:
                if maker.missing():
                    maker.write(_by_rows(open_rewriter(writer)), partial(tell, "write"))
                found, result = maker.examples(), maker.counts()
                if choose is not None and any(found.values()):
                    found, choice = choose(asked, found, partial(tell, "draw"))
                    result |= choice
            except (KeyboardInterrupt, Interrupted) as stop:
                raise Interrupted(
                    f"stopped; {answers.count} answers are kept in {folder}, the same command goes on"
                ) from stop
            except RepriseError:
                if answers.count:
                    terminal.note(f"{answers.count} answers are kept in {folder}, the same command goes on")
                raise
        usable = [one for one in asked if found[one.prompt]]
        if not usable:
            raise RepriseError(f"no example came of it: {'; '.join(_summary(result))}")
        aside = held_out(usable, eval_share, seed) if eval_share else set()
        for name, path in (("held_out", eval_out), ("train", out)):
            if path is not None:
                mine = [one.prompt for one in usable if (one.prompt in aside) == (name == "held_out")]
                examples = [example for prompt in mine for example in found[prompt]]
                answers.save(path, examples)
                result[name] = {"file": str(path), "prompts": len(mine), "examples": len(examples)}
    if as_json:
        terminal.print_json(result)
        return
    for line in _summary(result):
        terminal.note(line)
    for name in ("held_out", "train"):
        if name in result:
            made = result[name]
            terminal.out().print(
                f"[bold]{made['file']}[/bold]: {made['examples']} examples of {made['prompts']} prompts",
                soft_wrap=True,
            )


def _by_rows(rewriter: Rewriter) -> RowRewriter:
    from ...rewriters.rows import RowRewriter

    assert isinstance(rewriter, RowRewriter), "all that give reasons ask a model, row by row"
    return rewriter


def _prompts(source: str) -> list[TrainingPrompt]:
    """The prompts, each once, checked."""
    from ...storage.prompt_files import check_prompt
    from ...training.rollouts.prompts import read_prompts
    from .. import terminal

    found, once = read_prompts(source), {}
    for one in found:
        check_prompt(one.prompt, f"{source}: the prompt {one.prompt[:40]!r}")
        once.setdefault(one.prompt, one)
    if len(once) < len(found):
        terminal.note(f"{len(found) - len(once)} of {len(found)} prompts are repeated, and left out")
    return list(once.values())


def _check(share: float, out: Path, eval_out: Path | None, images: int, seed: int) -> None:
    if not 0 <= share < 1:
        raise BadInput(f"--eval-share must be 0 or more and below 1, got {share:g}")
    if eval_out is not None and not share:
        raise BadInput("--eval-out needs to know how many prompts to hold out; add --eval-share 0.05")
    if eval_out is not None and eval_out.absolute() == out.absolute():
        raise BadInput(f"--eval-out and --out are both {out}; give two files")
    checks.check_seeds(seed, images)


def _filters(names: list[str]) -> dict[str, TextReward]:
    """Rewards that read rewrites. Raises UnknownName, and Unsupported for one that reads pictures."""
    from ...factory import open_reward, parse_reward

    return {name: open_reward(parse_reward(name, reads="rewrites")) for name in names}


def _chooser(
    folder: Path,
    renderer: str | None,
    reward: list[str] | None,
    images: int,
    steps: int | None,
    seed: int,
    drawing_options: dict[str, Any],
) -> Callable[..., tuple[dict[str, list[RewriteExample]], dict[str, int]]]:
    """What keeps each prompt's best example by its pictures. The names are checked here; models are loaded
    when it is called, by which time the rewriter is gone."""
    from ...factory import (
        DEFAULT_JUDGE,
        DEFAULT_RENDERER,
        check_renderer,
        open_renderer,
        open_rewards,
        parse_weights,
        renderer_settings,
    )
    from ...storage.cache import Cache

    name = renderer or DEFAULT_RENDERER
    cache = Cache(folder / "pictures", PICTURES_GB * 2**30)
    drawing = renderer_settings(name, steps, **drawing_options)
    able = check_renderer(drawing).capabilities
    elsewhere = able.elsewhere
    if not reward and not able.shapeworld:
        raise BadInput(f"--renderer {name} needs a --reward: the embedded one reads ShapeWorld pictures only")
    weights = parse_weights(reward or [DEFAULT_JUDGE])

    def choose(
        asked: list[TrainingPrompt],
        examples: Mapping[str, list[RewriteExample]],
        progress: Callable[[int, int], None],
    ) -> tuple[dict[str, list[RewriteExample]], dict[str, int]]:
        from ...storage.files import write_whole
        from ...training.common.offload import StageTimer
        from ...training.rollouts.scoring import PictureScorer
        from ...training.sft.make_data import keep_best

        rewards = open_rewards(weights)
        # A server's pictures are kept one by one, as they come; the scorer keeps what is drawn here.
        drawer = open_renderer(drawing, cache=cache if elsewhere else None)
        scorer = PictureScorer(drawer, rewards, cache, StageTimer(), AT_ONCE, overlap=elsewhere)
        best, rows = keep_best(
            asked,
            examples,
            scorer,
            weights,
            range(seed, seed + images),
            AT_ONCE * (4 if elsewhere else 1),
            progress,
        )
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_whole(folder / "pictures.jsonl", "".join(lines))
        left = [bool(row["failed"]) for row in rows if not row["best"]]
        return best, {"not_judged": sum(left), "not_better": len(left) - sum(left)}

    return choose


def _summary(result: Mapping[str, Any]) -> list[str]:
    """What became of the answers, in lines."""
    lines, unusable = [f"{result['answers']} answers to {result['prompts']} prompts"], result["unusable"]
    if unusable:
        whys = [f"{why} ({count})" for why, count in list(unusable.items())[:FEW]]
        more = f"; and {len(unusable) - FEW} other reasons" if len(unusable) > FEW else ""
        lines.append(f"{sum(unusable.values())} cannot be used: {'; '.join(whys)}{more}")
    for key, words in (
        ("duplicates", "say what another says"),
        ("not_better", "prompts left out: no rewrite's pictures are as good as their own"),
        ("not_judged", "prompts left out: their pictures were not judged"),
    ):
        if result.get(key):
            lines.append(f"{result[key]} {words}")
    return lines
