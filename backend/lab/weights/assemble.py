"""Joins the trained parts into pipelines' folders, half precision, as committed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any


def assemble_pipeline(work: Path, out: Path) -> Path:
    """Build `out` (a whole `save_pretrained` folder of a FluxPipeline) from the stages' models in `work`."""
    from diffusers import (
        AutoencoderTiny,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )
    from transformers import CLIPTextModel, T5EncoderModel

    from ...shapeworld.tokenizers import clip_tokenizer, t5_tokenizer

    vae: Any = AutoencoderTiny.from_pretrained(work / "vae")  # the pipeline takes it, its hints do not
    pipeline = FluxPipeline(
        # The sigmas of rectified flow as trained: no shift towards the noisy end at this size.
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel.from_pretrained(work / "text_encoder_2"),
        tokenizer_2=t5_tokenizer(),
        transformer=FluxTransformer2DModel.from_pretrained(work / "transformer"),
    )
    return write_pipeline(pipeline, work / "pipeline", out)


def write_pipeline(pipeline: Any, made: Path, out: Path) -> Path:
    """Save in half precision to `made`, then put that in the place of `out`."""
    import torch

    shutil.rmtree(made, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(made)
    # Where a part was loaded from is this machine's affair.
    for file in (made / "model_index.json", *made.glob("*/config.json")):
        settings = {k: v for k, v in json.loads(file.read_text()).items() if k != "_name_or_path"}
        file.write_text(json.dumps(settings, indent=2) + "\n")
    return replace_folder(made, out)


def replace_folder(made: Path, out: Path) -> Path:
    """Put a copy of `made` in the place of `out`; the model card there outlives a rebuild."""
    beside = out.with_name(out.name + ".new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(made, beside)
    if (out / "README.md").exists():
        shutil.copy2(out / "README.md", beside / "README.md")
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(beside, out)
    return out
