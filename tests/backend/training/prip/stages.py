"""Running a stage of PRIP in a test, and comparing what came of it."""

import json

import torch
from safetensors.torch import load_file

from reprise.backend.training.prip import decoder as prip_decoder
from reprise.backend.training.prip import encoder as prip_encoder
from reprise.backend.training.prip.decoder import DecoderConfig, DecoderLoop
from reprise.backend.training.prip.encoder import EncoderConfig, EncoderLoop

STAGES = {
    "decoder": (prip_decoder, DecoderConfig, DecoderLoop),
    "encoder": (prip_encoder, EncoderConfig, EncoderLoop),
}


def settings(stage, log, refiner=None, **changes):
    made = {
        "log": log,
        "max_steps": 4,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "scheduler": "constant",
        "eval_share": 0.2,
        "eval_every": 2,
        "save_every": 2,
        "device": "cpu",
        "gradient_checkpointing": False,
    }
    if "preset" not in changes:
        made["model"] = str(refiner)
    if stage == "encoder" and changes.get("preferred") != "random":
        made["rewards"] = {"shapeworld": 1.0}
    return STAGES[stage][1](**{**made, **changes})


def train(stage, config, run, resume=False, log=lambda line: None):
    return STAGES[stage][0].train(config, run, resume=resume, log=log)


def rows(run, name="metrics.jsonl"):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def tensors(folder):
    return {
        path.relative_to(folder).as_posix(): load_file(path) for path in sorted(folder.rglob("*.safetensors"))
    }


def changed(one, other):
    """Files of two refiners' folders, and in model.safetensors the tensors, that differ."""
    found, (a, b) = set(), (tensors(one), tensors(other))
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        differ = {key for key in a[name] if not torch.equal(a[name][key], b[name][key])}
        found |= differ if name == "model.safetensors" else {name} if differ else set()
    return found
