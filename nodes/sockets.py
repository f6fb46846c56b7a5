"""The pack's own socket types, and inputs that several nodes share."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

CATEGORY = "Reprise"
Rewriter = io.Custom("REPRISE_REWRITER")
Refiner = io.Custom("REPRISE_REFINER")
Judge = io.Custom("REPRISE_JUDGE")
EMBEDDED = "shapeworld (embedded)"


def rewriter_inputs(socket: io.Input, word: str) -> list[io.Input]:
    """Inputs of a node that writes prompts; `word` is its word for one of them, such as "rewrite"."""
    return [
        io.String.Input(
            "prompt",
            multiline=True,
            default="",
            dynamic_prompts=True,
            tooltip="What the picture shows, in your own few words.",
        ),
        socket,
        *variant_inputs(word),
    ]


def variant_inputs(word: str) -> list[io.Input]:
    """Inputs for the number of prompts that a model writes, and for the seed of all but the first."""
    return [
        io.Int.Input(
            "variants",
            default=1,
            min=1,
            max=64,
            tooltip=f"1: the model's best {word}. More: so many different ones, as a list; the "
            "nodes after this one run once for each.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**63 - 1,
            control_after_generate=True,
            tooltip=f"The same seed gives the same {word}s. No effect with one variant.",
        ),
    ]


def sampler_inputs(seed_means: str) -> list[io.Input]:
    """KSampler's settings, for nodes that draw; `seed_means` is the tooltip of the seed."""
    return [
        io.Int.Input(
            "seed", default=0, min=0, max=2**63 - 1, control_after_generate=True, tooltip=seed_means
        ),
        io.Int.Input("steps", default=20, min=1, max=10000),
        io.Float.Input("cfg", default=3.0, min=0.0, max=100.0, step=0.1, round=0.01),
        io.Combo.Input("sampler_name", options=comfy.samplers.SAMPLER_NAMES, default="euler"),
        io.Combo.Input("scheduler", options=comfy.samplers.SCHEDULER_NAMES, default="simple"),
    ]
