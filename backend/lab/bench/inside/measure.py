"""Measures the nodes inside ComfyUI; `reprise lab bench nodes` runs this file in ComfyUI's Python.

Usage: measure.py COMFYUI_FOLDER PACK_FOLDER PAIRS STEPS. It prints one line of JSON with
`pairs`: {width in pixels: [[seconds of stock nodes, seconds of PARM with N = 1], …]};
`import`: seconds to import the pack and build its node list;
`interrupts`: [[seconds from interrupt to stop, seconds of one step], …].
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from boot import module, start

PROMPT = "a large red circle at the top left and a small blue star in the center, on a grey background"
SIZES = (128, 256)  # pixels: the embedded model's own size, and one of four times the work
CANDIDATES, DELAYS = 8, (0.35, 0.5, 0.65, 0.8, 0.95)  # of interrupted runs; seconds before the interrupt


def _import_seconds(pack: Callable[..., Any]) -> float:
    """Seconds that the pack needs when ComfyUI starts: import, entry point and all schemas."""
    started = time.perf_counter()
    extension = asyncio.run(pack().comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        node.GET_SCHEMA()
    return time.perf_counter() - started


class _Bench:
    def __init__(self, pack: Callable[..., Any], steps: int):
        import nodes as stock

        self.stock, self.steps = stock, steps
        self.parm, self.scorer = pack("nodes.parm").ParmBestOfN, pack("nodes.scorer").RewardScorer
        self.model, self.clip, self.vae = pack("nodes.shapeworld").load()
        self.judge = pack("nodes.loaders").LoadJudge.execute("shapeworld").args[0]
        self.positive, self.negative = self._encode(PROMPT), self._encode("")

    def _encode(self, text: str) -> Any:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def _sampling(self, width: int, steps: int) -> dict[str, Any]:
        import torch

        latent = {"samples": torch.zeros(1, 16, width // 8, width // 8)}
        return {
            "model": self.model,
            "seed": 1,
            "steps": steps,
            "cfg": 3.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "positive": self.positive,
            "negative": self.negative,
            "latent_image": latent,
            "denoise": 1.0,
        }

    def of_stock_nodes(self, width: int) -> float:
        """Seconds of KSampler, VAE Decode and our scorer, as in a graph without PARM."""
        started = time.perf_counter()
        latent = self.stock.KSampler().sample(**self._sampling(width, self.steps))[0]
        image = self.stock.VAEDecode().decode(self.vae, latent)[0]
        self.scorer.execute(images=image, prompt=PROMPT, judge=self.judge)
        return time.perf_counter() - started

    def of_parm(self, width: int, candidates: int = 1, steps: int | None = None) -> float:
        started = time.perf_counter()
        self.parm.execute(
            **self._sampling(width, steps or self.steps),
            vae=self.vae,
            judge=self.judge,
            prompt=PROMPT,
            candidates=candidates,
            prune="none",
            preview="auto",
            chunk=0,
        )
        return time.perf_counter() - started

    def pairs(self, width: int, count: int) -> list[list[float]]:
        """[seconds of stock nodes, seconds of PARM] of alternating runs, after a warm-up run of each."""
        self.of_stock_nodes(width), self.of_parm(width)
        found = []
        for i in range(count):
            if i % 2:
                parm, stock = self.of_parm(width), self.of_stock_nodes(width)
            else:
                stock, parm = self.of_stock_nodes(width), self.of_parm(width)
            found.append([stock, parm])
        return found

    def interrupts(self) -> list[list[float]]:
        """[seconds from ComfyUI's interrupt to the node's end, seconds of one step of that search] each."""
        import comfy.model_management as management

        whole = 16
        step = min(self.of_parm(128, CANDIDATES, whole) for _ in range(3)) / whole
        found = []
        for delay in DELAYS:
            started = [0.0]

            def interrupt(started: list[float] = started) -> None:
                started[0] = time.perf_counter()
                management.interrupt_current_processing()

            timer = threading.Timer(delay, interrupt)
            timer.start()
            try:
                self.of_parm(128, CANDIDATES, 10_000)
            except management.InterruptProcessingException:
                found.append([time.perf_counter() - started[0], step])
            timer.join()
        return found


def main() -> None:
    comfyui, folder, pairs, steps = sys.argv[1:5]
    start(comfyui)
    import torch

    import nodes as _  # noqa: F401  ComfyUI has all of this in memory before it loads packs

    pack = partial(module, folder)
    seconds = _import_seconds(pack)
    bench = _Bench(pack, int(steps))
    with torch.inference_mode():
        found = {
            "import": seconds,
            "pairs": {str(width): bench.pairs(width, int(pairs)) for width in SIZES},
            "interrupts": bench.interrupts(),
        }
    import comfyui_version

    print(json.dumps({**found, "comfyui": comfyui_version.__version__}))


if __name__ == "__main__":
    main()
