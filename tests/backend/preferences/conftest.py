"""Files of runs, written without rendering or training."""

import json

import pytest
import torch

from reprise.backend.core.types import Candidate, Cost, Outcome, Rewrite
from reprise.backend.storage import files, records
from reprise.backend.storage.cache import Cache

SETTINGS = {"renderer": "fake", "rewriter": "reprompt", "judge": None, "rewards": {}, "seed": 0}


def picture(number):
    """A random picture (8, 8, 3) of 8-bit values, another one for each number."""
    made = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(number))
    return made.mul(255).round() / 255


@pytest.fixture
def render(tmp_path):
    """(prompt, [(drawn prompt, score)], **settings) -> folder of a render's record; score None: pruned."""

    def make(prompt, candidates, name=None, scores=None, **settings):
        folder = tmp_path / (name or files.slug(prompt))
        found = [
            Candidate(
                i,
                10 + i,
                words,
                {"shapeworld": score, **(scores[i] if scores else {})},
                score,
                image=picture(100 * len(prompt) + i),
            )
            if score is not None
            else Candidate(i, 10 + i, words, pruned_at=2)
            for i, (words, score) in enumerate(candidates)
        ]
        rewrites = [Rewrite(f"Why {words}.", words, "reprompt") for words, _ in candidates]
        best = max((c for c in found if c.score is not None), key=lambda c: c.score).index
        outcome = Outcome(prompt, rewrites, found, best, [], Cost())
        records.save_outcome(folder, outcome, {**SETTINGS, **settings}, {"reprise": "0"})
        return folder

    return make


@pytest.fixture
def training(tmp_path):
    """(groups) -> a run folder of GRPO; a group is {prompt, rewrites: [(rewrite, [scores of pictures])]}."""

    def make(groups, rewards=None, name="grpo"):
        run = tmp_path / name
        cache = Cache(run / "rollouts" / "pictures")
        lines = []
        for position, group in enumerate(groups):
            for variant, (words, scores) in enumerate(group["rewrites"]):
                keys = [Cache.key("image", words, seed) for seed in range(len(scores))]
                for seed, (key, score) in enumerate(zip(keys, scores)):
                    cache.put_image(key, picture(1000 * position + 100 * variant + seed))
                    meaning = group.get("judged_as") or group["prompt"]
                    cache.put_scores(Cache.key("scores", key, meaning), {"shapeworld": score})
                lines.append(
                    {
                        "step": 1,
                        "position": position,
                        "prompt": group["prompt"],
                        **({"judged_as": group["judged_as"]} if "judged_as" in group else {}),
                        "variant": "original" if words == group["prompt"] else variant,
                        "reason": f"Why {words}.",
                        "rewrite": words,
                        "seeds": list(range(len(scores))),
                        "pictures": keys,
                        "scores": {"shapeworld": sum(scores) / max(1, len(scores)), "structure": 1.0},
                        "replaced": False,
                    }
                )
            lines.append(
                {
                    "step": 1,
                    "position": position,
                    "prompt": group["prompt"],
                    "variant": 99,
                    "unparsable": "no tags",
                    "seeds": [0],
                    "pictures": [],
                    "scores": {},
                    "replaced": False,
                }
            )
        (run / "rollouts").mkdir(parents=True, exist_ok=True)
        (run / "rollouts" / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        weights = rewards or {"structure": 0.5, "shapeworld": 1.0}
        (run / "config.yaml").write_text(json.dumps({"rewards": weights, "renderer": {"name": "fake"}}))
        return run

    return make
