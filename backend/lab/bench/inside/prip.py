"""PRIP and its PPO in their own process; `reprise lab bench prip` runs it.

Usage: prip.py FOLDER SETTINGS REFINED. SETTINGS is a PpoConfig as JSON, REFINED a number of prompts. The
first line printed is {"device", "threads", "batch"}. Then each line read is answered by one line:
{"do": "refine"} refines the prompts in each way: {way: {"seconds", "rows", "tokens"}};
{"do": "step"} takes a PPO step: {"step": its metrics, "floor": {"write", "render", "update"}}, where the
floor is the seconds of the networks alone.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any


def refining_methods(refiner: Any, prompts: Sequence[str]) -> dict[str, Callable[[], list[int]]]:
    """Way of refining the prompts -> a function that refines them and returns the tokens of each."""
    greedy = []
    generate = refiner.generate

    def recording_generate(pivots: Any, begun: Any, keys: Any, should_stop: Any = None) -> Any:
        greedy.append((pivots, begun, keys))
        return generate(pivots, begun, keys, should_stop)

    refiner.generate = recording_generate
    refiner.rewrite(prompts)
    refiner.generate = generate
    drawn = [
        (seen, begun, [100 * n + i for i in range(len(begun))]) for n, (seen, begun, _) in enumerate(greedy)
    ]
    embedded = [refiner.model.decoder_inputs(_stack(seen, refiner), begun) for seen, begun, _ in greedy]
    return {
        "ours": lambda: [0] * len(refiner.rewrite(prompts)),
        "ours, pivots": lambda: _our_token_counts(refiner, greedy),
        "generate": lambda: _generate_token_counts(refiner, embedded, drawn=False),
        "ours, drawn": lambda: _our_token_counts(refiner, drawn),
        "generate, drawn": lambda: _generate_token_counts(refiner, embedded, drawn=True),
    }


def _stack(seen: Sequence[Any], refiner: Any) -> Any:
    import torch

    return torch.stack([one.to(refiner.model.device) for one in seen])


def _our_token_counts(refiner: Any, batches: Sequence[Any]) -> list[int]:
    """Generate with our rewriter; returns the number of tokens of each text."""
    return [len(one.ids) for batch in batches for one in refiner.generate(*batch)]


def _generate_token_counts(refiner: Any, embedded: Sequence[Any], drawn: bool) -> list[int]:
    """Generate with the decoder's own `generate`, decoded to text like ours; returns the number of tokens."""
    import torch
    from transformers import GenerationConfig

    from reprise.backend.rewriters.decoding import end_tokens, pad_token

    model, how = refiner.model, refiner.decoding
    ends = end_tokens(model.decoder, model.decoder_tokenizer)
    choosing: dict[str, Any] = {"do_sample": drawn}
    if drawn:
        choosing |= {"temperature": how.temperature, "top_k": 0, "top_p": how.top_p}
    else:
        choosing |= {"num_beams": how.beams, "length_penalty": how.length_penalty}
    plain = GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=pad_token(model.decoder_tokenizer),
        **choosing,
    )
    lengths = []
    # The checkpoint's own settings could add work that our side does not do.
    own, model.decoder.generation_config = model.decoder.generation_config, plain
    try:
        for inputs in embedded:
            with torch.inference_mode():
                out: Any = model.decoder.generate(**inputs, generation_config=plain)
            model.decoder_tokenizer.batch_decode(out, skip_special_tokens=True)
            for row in out.tolist():
                lengths.append(next((i + 1 for i, token in enumerate(row) if token in ends), len(row)))
    finally:
        model.decoder.generation_config = own
    return lengths


def make_probe(loop: Any) -> Any:
    """A NetworkProbe of a PPO loop; `loop.batch` is the last batch that it learned from."""
    import torch

    from reprise.backend.lab.bench.floor import NetworkProbe, seconds_of
    from reprise.backend.training.ppo.policy import pivots_of

    class PpoProbe(NetworkProbe):
        def _generating(self, pivots: Any, begun: Any, *args: Any, **kwargs: Any) -> Any:
            written = self._generate(pivots, begun, *args, **kwargs)
            self._batches.append((pivots, begun, [one.ids for one in written]))  # pyright: ignore
            return written

        def write_seconds(self) -> float:
            batches: list[Any] = self._batches
            model, prompts = loop.model, {tuple(group.ids) for group in loop.batch.groups}
            ids, each = sorted(prompts, key=len), loop.config.write_batch

            def write() -> None:
                for start in range(0, len(ids), each):
                    model.encode([list(row) for row in ids[start : start + each]])
                for pivots, begun, answers in batches:
                    _token_by_token(model, model.decoder_inputs(torch.stack(list(pivots)), begun), answers)

            with torch.inference_mode():
                return seconds_of(write)

        def learn_seconds(self) -> float:
            """Seconds of all forward and backward passes of the update."""
            rows = loop.batch.valid

            def answer(part: Sequence[Any], pivots: Any) -> Any:
                written = [sample.written.ids for _, sample in part]
                prefixes = [group.prefix for group, _ in part]
                logits, _ = loop.model.logits_and_states(pivots, prefixes, written)
                return logits.log_softmax(-1).amax(-1).mean()

            def learn() -> None:
                for chosen in loop._passes(range(len(rows)), rows):
                    part = [rows[i] for i in chosen]
                    with torch.no_grad():
                        pivots = pivots_of(loop.model, part)
                        answer(part, pivots)
                        answer(part, pivots)
                    for _ in range(loop.config.epochs):
                        answer(part, pivots_of(loop.model, part)).backward()

            try:
                return seconds_of(learn)
            finally:
                loop.model.zero_grad(set_to_none=True)

    return PpoProbe(loop.scorer.renderer, loop.rewriter, nullcontext)


def _token_by_token(model: Any, inputs: dict[str, Any], answers: Sequence[Sequence[int]]) -> None:
    import torch

    most, mask = max(map(len, answers)), inputs["attention_mask"]
    ids = torch.tensor([[*row, *[0] * (most - len(row))] for row in answers], device=mask.device)
    out = model.decoder(**inputs, use_cache=True, logits_to_keep=1)
    for i in range(most - 1):
        mask = torch.cat([mask, torch.ones_like(ids[:, :1])], 1)  # as in generation, ended rows continue
        out = model.decoder(
            input_ids=ids[:, i : i + 1],
            attention_mask=mask,
            past_key_values=out.past_key_values,
            use_cache=True,
        )


def answer(
    request: dict[str, Any], ways: dict[str, Callable[[], list[int]]], loop: Any, probe: Any, turn: int
) -> dict[str, Any]:
    if request["do"] == "refine":
        found = {}
        for name in reversed(ways) if turn % 2 else ways:
            begun = time.perf_counter()
            lengths = ways[name]()
            took = time.perf_counter() - begun
            found[name] = {"seconds": took, "rows": len(lengths), "tokens": sum(lengths)}
        return found
    probe.reset()
    row, floor = loop.step(turn + 1), {}
    for name, measure in (
        ("write", probe.write_seconds),
        ("render", probe.render_seconds),
        ("update", probe.learn_seconds),
    ):
        loop.timer.enter(name)
        floor[name] = measure()
    return {"step": row, "floor": floor}


def main() -> None:
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print too
    if "reprise" not in sys.modules:  # an installation's, or the pack's by its path
        runpy.run_path(str(Path(os.environ["REPRISE_ROOT"]) / "__main__.py"))["_as_package"]()
    import torch

    from reprise.backend.core.config import save_config
    from reprise.backend.core.model_files import quiet_loading
    from reprise.backend.rewriters.prip.rewriter import PripRewriter
    from reprise.backend.training.common.run_folder import claim_run_folder
    from reprise.backend.training.ppo.config import PpoConfig
    from reprise.backend.training.ppo.loop import PpoLoop

    config = PpoConfig(**settings)
    with quiet_loading():
        claim_run_folder(folder / "run", save_config(config), resume=False)
        loop: Any = PpoLoop(config, folder / "run", False, print)
        prompts = [asked.prompt for _, asked in loop.rollouts.stream.take(int(sys.argv[3]))]
        loop.rollouts.stream.position = 0
        refiner = PripRewriter(loop.start, device=str(loop.model.device))
        ways, probe, collect = refining_methods(refiner, prompts), make_probe(loop), loop.rollouts.collect

        def collected() -> Any:
            loop.batch = collect()
            return loop.batch

        loop.rollouts.collect = collected
        device = torch.cuda.get_device_name() if loop.model.device.type == "cuda" else "cpu"
        turns = {"refine": 0, "step": 0}
        found: dict[str, Any] = {
            "device": device,
            "threads": torch.get_num_threads(),
            "batch": refiner.batch_size,
        }
        print(json.dumps(found), file=answers, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            found = answer(request, ways, loop, probe, turns[request["do"]])
            turns[request["do"]] += 1
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
