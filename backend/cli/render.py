"""`reprise render`: the main job. Rewrite, search, judge, reflect; pictures, records and a page.

One prompt's files lie right in the output folder; several prompts get a folder each, named by their
words, so that adding prompts to a file redoes nothing. A prompt with a finished record of the same
settings is kept as it is.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import BadInput, Interrupted, RepriseError
from ..core.interfaces import Critic
from ..reports.build import PAGE
from . import options

if TYPE_CHECKING:
    from ..search.chain import Chain
    from ..storage.records import Record


@dataclass
class RenderedPrompt:
    """One finished prompt: its folder and record."""

    folder: Path
    record: Record


def render(
    prompts: options.Prompts = None,
    file: options.PromptFile = None,
    renderer: options.Renderer = "shapeworld",
    lora: options.Lora = None,
    steps: options.Steps = None,
    rewriter: options.Rewriter = None,
    variants: options.Variants = 4,
    best_of: options.BestOf = 8,
    prune: options.Prune = None,
    reflect: options.Reflect = None,
    corrector: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="the rewriter",
            help="Mends the prompt by what the judge finds wrong; named as for --rewriter.",
        ),
    ] = None,
    correction: options.Correction = "draw-again",
    strength: options.Strength = 0.75,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="shapeworld",
            help="Selects the best picture and says what is wrong with it. remote:NAME@URL is a judge that "
            "`reprise serve rewards` runs; vlm:FOLDER or vlm:MODEL@URL is a vision-language model, which "
            "criticises with #checklist after its name, or with #critique once `reprise train judge` has "
            "tuned it.",
        ),
    ] = None,
    previews: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="the judge",
            help="Judges the previews. A vision-language model is asked what will become of them (PARM's "
            "potential).",
        ),
    ] = None,
    reward: options.WeightedRewards = None,
    seed: Annotated[
        int,
        typer.Option(metavar="N", callback=options.seed_in_range, help="Candidate i is drawn from seed + i."),
    ] = 0,
    out: options.Out = None,
    redo: Annotated[bool, typer.Option("--redo", help="Draw finished prompts again.")] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="The record on stdout, nothing else: an object for one PROMPT, an array "
            "for several or for a file.",
        ),
    ] = False,
) -> None:
    """Rewrite a short prompt, draw many candidates, stop the hopeless ones early, mend and keep the best."""
    from ..factory import (
        DEFAULT_REWRITER,
        open_judge,
        open_renderer,
        open_reward,
        open_rewriter,
        parse_judge,
        parse_reward,
        parse_rewriter,
        parse_weights,
        renderer_settings,
    )
    from . import checks, terminal
    from .prompts import gather

    # All that can be wrong with the words is found before a model is loaded.
    texts = gather(prompts or [], file, terminal.note)
    # Every candidate of every round needs a seed.
    checks.check_seeds(seed, best_of * (2 if reflect is None else 1 + reflect))
    mending = checks.correction_named(correction)
    drawing = renderer_settings(renderer, steps, lora)
    prune = checks.choose_prune(prune, renderer)
    weights = parse_weights(reward or [])
    judges = parse_judge(judge, weights, renderer)
    looks = parse_reward(previews) if previews is not None else None
    if looks and prune == "none":
        raise BadInput("--previews has no use where nothing is pruned; leave it out, or give --prune")
    writes = parse_rewriter(rewriter, renderer)
    if corrector is not None and reflect == 0:
        raise BadInput("--corrector has no use without rounds of reflection; leave it out, or give --reflect")
    mends = parse_rewriter(corrector, renderer) if corrector not in (None, rewriter) else None
    from ..storage.files import slug
    from ..storage.outputs import check_made, claim
    from ..storage.records import FILES, check_folder, installed_versions, prompt_folders

    several = len(texts) > 1
    asked: dict[str, Any] = {
        "renderer": renderer,
        "rewriter": rewriter,
        "best_of": best_of,
        "variants": variants,
        "prune": prune,
        "reflect": reflect,
        "judge": judge,
        "rewards": weights,
        "seed": seed,
        "steps": steps,
        **({"previews": previews} if previews else {}),
        **({"lora": str(lora)} if lora else {}),
        **({"corrector": corrector} if corrector else {}),
        **({"correction": correction, "strength": strength} if correction != "draw-again" else {}),
    }
    # Named by prompts and options: another try of the same prompt never replaces an earlier one.
    out = out or Path("out") / slug("\n".join(texts), salt=repr(asked))
    names = (PAGE,) if several else (PAGE, *FILES)
    with claim(out, "render", names), terminal.quiet_stdout(as_json):
        check_made(out, out / PAGE)
        folders = prompt_folders(out, texts) if several else {texts[0]: out}
        for folder in folders.values():
            check_folder(folder)
        judging = open_judge(judges)
        if reflect is None:
            reflect = 1 if isinstance(judging, Critic) or corrector else 0
        looking = open_reward(looks) if looks and previews != judge else None
        drawer, rewriting = open_renderer(drawing), open_rewriter(writes)
        from ..search.chain import Chain
        from ..search.reflection import critique_warning

        correcting = open_rewriter(mends) if mends else None
        if reflect and (told := critique_warning(correcting or rewriting)):
            terminal.note(f"{told}; name one that does with --corrector, or give --reflect 0")
        chain = Chain(
            rewriting,
            drawer,
            judging,
            best_of=best_of,
            prune=prune,
            reflect=reflect,
            seed=seed,
            variants=variants,
            correction=mending,
            strength=strength,
            preview_reward=looking,
            corrector=correcting,
        )
        settings = {
            **asked,
            "rewriter": rewriter or DEFAULT_REWRITER,
            "reflect": reflect,
            "renderer_fingerprint": drawer.fingerprint,
            "steps": drawer.steps,
        }
        roles = (
            ("judge", judging),
            ("previews", looking),
            ("rewriter", rewriting),
            ("corrector", correcting),
        )
        for role, one in roles:
            if one is not None and one.fingerprint:
                settings[f"{role}_fingerprint"] = one.fingerprint
        entries = _run_all(chain, folders, settings, installed_versions(), out, redo)
    if as_json:
        records = [entry.record.model_dump(mode="json") for entry in entries]
        terminal.print_json(records if several or file else records[0])
    else:
        for entry in entries:
            _print(entry)
        terminal.out().print(f"open [bold]{out / 'index.html'}[/bold]", soft_wrap=True)


def _run_all(
    chain: Chain,
    folders: dict[str, Path],
    settings: dict[str, Any],
    found: dict[str, str],
    out: Path,
    redo: bool,
) -> list[RenderedPrompt]:
    """Draw what is not finished. A prompt that cannot be judged is passed over where there are more.

    Whatever happens, the page shows what is finished when this is left.
    """
    from ..reports.build import write_page
    from ..storage.records import finished_record, save_outcome
    from . import terminal

    entries: list[RenderedPrompt] = []
    refused: list[str] = []
    try:
        with terminal.stage_progress() as start:
            for number, (prompt, folder) in enumerate(folders.items(), 1):
                record = None if redo else finished_record(folder, prompt, settings, terminal.note)
                if record is not None:
                    terminal.note(f"kept: {prompt} ({folder})")
                    entries.append(RenderedPrompt(folder, record))
                    continue
                title = f"{number}/{len(folders)} {prompt}" if len(folders) > 1 else prompt
                try:
                    outcome = chain.run(prompt, start(title))
                except BadInput as error:
                    if len(folders) == 1:
                        raise
                    refused.append(prompt)
                    terminal.note(f"passed over: {error}")
                    continue
                record = save_outcome(folder, outcome, settings, found, terminal.note)
                entries.append(RenderedPrompt(folder, record))
    except (KeyboardInterrupt, Interrupted) as stop:
        raise Interrupted(
            f"stopped; {len(entries)} of {len(folders)} prompts are finished in {out}; "
            f"the same command with --out {shlex.quote(str(out))} goes on with the rest"
        ) from stop
    finally:
        if entries:
            _page_or_note(write_page, out, entries)
    if refused:
        raise BadInput(
            f"{len(refused)} of {len(folders)} prompts could not be judged, the rest is in {out}; "
            f"the first was {refused[0][:80]!r}"
        )
    return entries


def _page_or_note(write_page: Any, out: Path, entries: list[RenderedPrompt]) -> None:
    """The page is made of the records: where it cannot be written, the run itself is not lost."""
    from . import terminal

    try:
        write_page(out, [(entry.folder, entry.record) for entry in entries])
    except RepriseError as error:
        terminal.note(f"no page: {error}")


def _print(entry: RenderedPrompt) -> None:
    """What became of one prompt, in a few lines."""
    from rich.markup import escape

    from ..storage.records import BEST
    from . import terminal

    record, cost = entry.record, entry.record.cost
    out = terminal.out()
    out.print(f"[bold]{escape(record.prompt)}[/bold]", soft_wrap=True)
    out.print(f"  drawn as  {escape(record.winner.prompt)}", soft_wrap=True)
    scored = [c.score for c in record.candidates if c.score is not None and c.round == 0]
    parts = [f"best [bold green]{record.winner.score or 0:.2f}[/bold green]"]
    if scored:
        stopped = sum(c.pruned_at is not None for c in record.candidates)
        parts.append(f"{len(record.candidates)} candidates, {stopped} stopped early")
    if record.reflection:
        first, last = record.reflection[0], record.reflection[-1]
        rounds = len(record.reflection) - 1
        parts.append(f"{rounds} round{'s' if rounds != 1 else ''} of mending" if rounds else "right at once")
        if rounds:
            best = max(r.score for r in record.reflection)
            parts[-1] += f" ({first.score:.2f} → {best:.2f}, right: {last.verdict})"
    share = cost.denoiser_rows / max(1, cost.denoiser_rows_full)
    parts.append(f"{share:.0%} of the full cost, {cost.seconds.get('total', 0):.1f} s")
    out.print("  " + " · ".join(parts), soft_wrap=True)
    out.print(f"  {entry.folder / BEST}", soft_wrap=True)
