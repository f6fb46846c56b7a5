"""Assembles the trained parts into pipeline folders in half precision, as they are committed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ...storage.checksums import check_folder, write_checksums


def assemble_pipeline(work: Path, out: Path) -> Path:
    """Writes `out`, a FluxPipeline's folder, from the models that the stages saved in `work`."""
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
        # Rectified flow's sigmas as in training: no shift towards the noisy end at this size.
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel.from_pretrained(work / "text_encoder_2"),
        tokenizer_2=t5_tokenizer(),
        transformer=FluxTransformer2DModel.from_pretrained(work / "transformer"),
    )
    return write_pipeline(pipeline, work / "pipeline", out)


def write_pipeline(pipeline: Any, temporary: Path, out: Path) -> Path:
    """Saves the pipeline in half precision to `temporary`, then replaces `out` by a copy."""
    import torch

    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(temporary)
    # The path that a part was loaded from means nothing on other machines.
    for file in (temporary / "model_index.json", *temporary.glob("*/config.json")):
        settings = {k: v for k, v in json.loads(file.read_text()).items() if k != "_name_or_path"}
        file.write_text(json.dumps(settings, indent=2) + "\n")
    return replace_folder(temporary, out)


def replace_folder(source: Path, out: Path) -> Path:
    """Replaces `out` by a copy of `source` with checksums; the model card in `out` is kept."""
    check_folder(source)
    beside = out.with_name(f".{out.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    if (out / "README.md").exists():
        shutil.copy2(out / "README.md", beside / "README.md")
    write_checksums(beside)
    if out.exists():
        before = out.with_name(f".{out.name}.old")
        shutil.rmtree(before, ignore_errors=True)
        os.replace(out, before)
        os.replace(beside, out)
        shutil.rmtree(before)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(beside, out)
    return out
