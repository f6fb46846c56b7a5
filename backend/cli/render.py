"""`reprise render`: the main job. Rewrite, search, judge, reflect; pictures, records and a page.

One prompt's files lie right in the output folder; several prompts get a folder each, named by their
words, so that adding prompts to a file redoes nothing. A prompt with a finished record of the same
settings is kept as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import BadInput
from ..core.interfaces import Critic
from ..reports.templates import INDEX_FILES, PAGE
from . import options
from .renderer_options import renderer_options


@renderer_options
def render(
    prompts: options.Prompts = None,
    file: options.PromptFile = None,
    renderer: options.Renderer = "shapeworld",
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
    *,
    drawing_options: dict[str, Any],
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
    drawing = renderer_settings(renderer, steps, **drawing_options)
    wanted, prune = prune, checks.choose_prune(prune, renderer)
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
        **drawing_options,
        **({"corrector": corrector} if corrector else {}),
        **({"correction": correction, "strength": strength} if correction != "draw-again" else {}),
    }
    # Named by prompts and options: another try of the same prompt never replaces an earlier one.
    out = out or Path("out") / slug("\n".join(texts), salt=repr(asked))
    names = (PAGE, INDEX_FILES) if several else (PAGE, *FILES)
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
        few = getattr(drawer, "distilled", None)
        if (
            few and steps is None and getattr(drawer, "folder", None) is None
        ):  # embedded ones have their steps
            terminal.note(f"Few steps without guidance: {few.why}. --steps and --guidance say otherwise.")
        prune = checks.prune_with(drawer, prune, asked=bool(wanted or previews))
        from ..search.chain import Chain
        from ..search.reflection import critique_warning
        from .drawing import Drawing

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
            "prune": prune,
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
        drawing_all = Drawing(chain, folders, settings, installed_versions(), out, redo)
        drawing_all.run()
    if as_json:
        drawing_all.print_json(as_list=several or file is not None)
    else:
        drawing_all.print_summary()
