"""`reprise lab weights build`: makes all embedded weights from nothing, in resumable stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import amused, judge, refiner, turbo
from .assemble import assemble_pipeline, replace_folder
from .autoencoder import train_autoencoder, train_decoder
from .flux import train_renderer
from .rewriter import build as build_rewriter
from .stable_diffusion import assemble_second, train_text_encoder, train_unet
from .styled import FLUX_STEPS, train_styled, train_styled_autoencoder, train_styled_decoder
from .text_encoders import train_text_encoders


def build(work: Path, out: Path, seed: int = 0, log: Callable[[str], None] = print) -> None:
    """Trains what `work` does not hold yet, and writes the embedded models into `out`.

    They are `renderer`, `renderer-sd`, their `-styled` versions, `renderer-masked`, `renderer-turbo`,
    `rewriter`, and, trained on the package's own embedded renderers, `judge`, `judge-base` and `refiner`. A
    stopped build resumes from its last checkpoint, at most two minutes back.
    """
    work.mkdir(parents=True, exist_ok=True)
    for name, stage in (
        ("autoencoder", train_autoencoder),
        ("decoder", train_decoder),
        ("text encoders", train_text_encoders),
        ("renderer", train_renderer),
        ("second text encoder", train_text_encoder),
        ("second renderer", train_unet),
    ):
        log(f"stage: {name}")
        stage(work, seed, log=log)
    assemble_pipeline(work, out / "renderer")
    assemble_second(work, out / "renderer-sd")
    log("stage: masked renderer")
    amused.train_codes(work, seed, log=log)
    amused.train_encoder(work, seed, log=log)
    amused.train_text_encoder(work, seed, log=log)
    amused.train_transformer(work, seed, log=log)
    amused.assemble_masked(work, out / "renderer-masked")
    log("stage: few-step renderer")
    turbo.train_turbo(work / "turbo", out / "renderer", seed, log=log)
    turbo.assemble_turbo(work / "turbo", out / "renderer", out / "renderer-turbo")
    log("stage: styled renderers")
    train_styled_autoencoder(work, out / "renderer", seed, log=log)
    train_styled_decoder(work, seed, log=log)
    train_styled(work, out / "renderer-sd", out / "renderer-sd-styled", seed, log=log)
    train_styled(work, out / "renderer", out / "renderer-styled", seed, FLUX_STEPS, log=log)
    log("stage: judge")
    tuned = judge.build(work / "judge", log)
    judge.assemble(work / "judge" / "base", out / "judge-base")
    judge.assemble(tuned, out / "judge")
    log("stage: rewriter")
    replace_folder(build_rewriter(work / "rewriter", log), out / "rewriter")
    log("stage: refiner")
    replace_folder(refiner.build(work / "refiner", "ppo-0", log), out / "refiner")
