"""Joins the trained parts into a FluxPipeline folder, half precision, as committed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def assemble_pipeline(work: Path, out: Path) -> Path:
    """Build `out` (a whole `save_pretrained` folder) from the stages' models in `work`."""
    import torch
    from diffusers import (
        AutoencoderTiny,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )
    from transformers import CLIPTextModel, T5EncoderModel

    from .tokenizers import clip_tokenizer, t5_tokenizer

    pipeline = FluxPipeline(
        # The sigmas of rectified flow as trained: no shift towards the noisy end at this size.
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=AutoencoderTiny.from_pretrained(work / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel.from_pretrained(work / "text_encoder_2"),
        tokenizer_2=t5_tokenizer(),
        transformer=FluxTransformer2DModel.from_pretrained(work / "transformer"),
    )
    beside = out.with_name(out.name + ".new")
    shutil.rmtree(beside, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(beside)
    for kept in ("README.md",):  # the model card outlives a rebuild of the weights
        if (out / kept).exists():
            shutil.copy2(out / kept, beside / kept)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(beside, out)
    return out
