"""What drawing any pipeline costs, beside that pipeline called by itself: ratios measured in one run.

Tiny pipelines with random weights (`lab/pipelines`), all pictures in one call, nothing pruned. "Drawn" is
the renderer's time over that of the pipeline's own call with the same arguments, in turns. "Previewed" is
the time in which latents become pictures over that part of it which the VAE's `decode` takes, call by call.
Tiny models are the worst case: what does not grow with the model weighs most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from ...core.errors import BadInput
from ...core.types import Job
from .parm import ratio_interval

PIPELINES = ("z-image", "qwen-image", "krea2", "flux2-klein", "chroma", "sana", "sd3")
GOALS = {"drawn": 1.02, "previewed": 1.15}
CANDIDATES = 8


def bench(
    names: Sequence[str] = (),
    *,
    pairs: int = 5,
    steps: int = 8,
    size: int = 256,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The result (design.md 5): two rows for each pipeline. Raises BadInput for an unknown name."""
    from ..pipelines.every import EVERY

    names = tuple(names) or PIPELINES
    for name in names:
        if name not in EVERY:
            raise BadInput(f"no tiny pipeline is called '{name}'; there are {', '.join(sorted(EVERY))}")
    times = {}
    for done, name in enumerate(names):
        if progress:
            progress(name, done, len(names))
        times[name] = _measure(EVERY[name], pairs, steps, size)
    result = result_of(times)
    result["settings"] = {
        "pairs": pairs,
        "steps": steps,
        "size": size,
        "candidates": CANDIDATES,
        "goals": GOALS,
    }
    return result


def result_of(times: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """The result (design.md 5) of seconds by pipeline: "renderer" and "pipeline" in turns, "preview" and
    "vae" call by call."""
    rows, table = [], []
    for name, spent in times.items():
        least = {side: min(values) for side, values in spent.items()}
        for what, ours, theirs in (("drawn", "renderer", "pipeline"), ("previewed", "preview", "vae")):
            rows.append(
                {
                    "name": f"{name}, {what}",
                    "tasks": {},
                    "overall": ratio_interval(spent[ours], spent[theirs]),
                    "cost": {ours: round(least[ours], 4), theirs: round(least[theirs], 4)},
                }
            )
        table.append(
            [
                name,
                round(least["renderer"] / least["pipeline"], 3),
                round(least["preview"] / least["vae"], 3),
                round(1000 * least["vae"], 1),
            ]
        )
    columns = ["", "drawn", "previewed", "milliseconds of the VAE's decode"]
    return {
        "name": "renderers",
        "rows": rows,
        "tables": [{"title": "shortest times, ours over theirs", "columns": columns, "rows": table}],
    }


def _measure(build: Callable[[], Any], pairs: int, steps: int, size: int) -> dict[str, list[float]]:
    import torch

    from ...renderers.diffusers.drawing import Drawing
    from ...renderers.diffusers.renderer import DiffusersRenderer

    torch.manual_seed(0)
    pipe = build()
    pipe.set_progress_bar_config(disable=True)
    jobs = [Job("a red cat", seed) for seed in range(CANDIDATES)]
    renderer = DiffusersRenderer(pipe, steps=steps, size=size, chunk=CANDIDATES)
    renderer.render(jobs[:2])  # finds the layout of the batch, which a session does once
    spent: dict[str, list[float]] = {"renderer": [], "pipeline": [], "preview": [], "vae": []}
    for _ in range(pairs):
        with _timed(spent["renderer"]):
            renderer.render(jobs)
        generators = [torch.Generator().manual_seed(job.seed) for job in jobs]
        arguments = renderer.call_arguments([job.prompt for job in jobs], generators)
        with _timed(spent["pipeline"]), torch.no_grad():
            pipe(**arguments, output_type="np")
    own, decode = Drawing.decode, pipe.vae.decode

    def previewed(*args: Any, **kwargs: Any) -> Any:
        spent["vae"].append(0.0)
        with _timed(spent["preview"]):
            return own(*args, **kwargs)

    def decoded(*args: Any, **kwargs: Any) -> Any:
        seconds: list[float] = []
        with _timed(seconds):
            pictures = decode(*args, **kwargs)
        spent["vae"][-1] += seconds[0]  # a preview of several chunks has several of them
        return pictures

    with mock.patch.object(Drawing, "decode", previewed), mock.patch.object(pipe.vae, "decode", decoded):
        for _ in range(pairs):
            renderer.render(jobs[:4])
    return spent


@contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)
