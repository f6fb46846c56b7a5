"""Random detections, a tiny detector and masks that come out alike everywhere: what the original and the
tests both use. As in `rewards/tiny.py`, numpy's RandomState makes them, so they need not be stored."""

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
METADATA = HERE / "evaluation_metadata.jsonl"
COLORS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SCENES = 3000
SIDE = 96  # the shortest that the detector sees, in place of 800
SIZES = [(333, 517), (240, 80), (224, 224)]  # width, height
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# config.json of a small Mask2Former for COCO.
DETECTOR = {
    "model_type": "mask2former",
    "num_labels": 80,
    "num_queries": 12,
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "dim_feedforward": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "backbone_config": {
        "model_type": "swin",
        "image_size": 64,
        "depths": [1, 1, 1, 1],
        "embed_dim": 8,
        "num_heads": [1, 1, 2, 2],
        "window_size": 2,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}


def published():
    return [json.loads(line) for line in METADATA.read_text(encoding="utf-8").splitlines()]


def scenes(names):
    """SCENES pairs of (metadata, [(class, confidence, (left, top, right, bottom), colour), …]); `names` are
    the 80 classes. Confidences differ within a scene: what a tie does is the sorting's choice."""
    random, lines = np.random.RandomState(11), published()
    for number in range(SCENES):
        line = _invented(random, names) if number % 4 == 3 else lines[random.randint(len(lines))]
        yield line, _detections(random, names, line)


def _detections(random, names, line):
    grid = (6, 200)[random.randint(2)]  # a coarse one gives equal centres and equal boxes
    seen = []
    for need in [*line["include"], *line.get("exclude", []), {"class": names[random.randint(80)]}]:
        wanted = need.get("count", 1)
        count = max(0, (wanted, wanted, wanted, wanted - 1, wanted + 1, 19)[random.randint(6)])
        for _ in range(count):
            left, top, wide, high = random.randint(grid), random.randint(grid), *random.randint(1, grid, 2)
            right = "color" in need and random.rand() < 0.8
            color = need["color"] if right else COLORS[random.randint(10)]
            seen.append((need["class"], (left, top, left + wide, top + high), color))
        if "position" in need and random.rand() < 0.7:
            seen = _placed(random, seen, need, line["include"][need["position"][1]]["class"])
    low, high = np.linspace(0.02, 0.899, 300), np.linspace(0.901, 0.999, 300)
    share = (0.95, 0.5)[random.randint(2)]
    some = [(high if random.rand() < share else low)[i] for i in random.permutation(300)[: len(seen)]]
    if some and random.rand() < 0.3:
        some[random.randint(len(some))] = (0.3, 0.9)[random.randint(2)]  # at a threshold is not above it
    return [(name, float(chance), box, color) for (name, box, color), chance in zip(seen, some)]


def _placed(random, seen, need, other):
    """The same things, those of `need` moved to where they should lie from a thing of class `other`."""
    there = [box for name, box, _ in seen if name == other]
    if not there:
        return seen
    across, down = RELATIONS[need["position"][0]]
    left = there[0][0] + across * 150 + random.randint(-60, 61)
    top = there[0][1] + down * 150 + random.randint(-60, 61)

    def moved(box):
        return left, top, left + box[2] - box[0], top + box[3] - box[1]

    return [(name, moved(box) if name == need["class"] else box, color) for name, box, color in seen]


def _invented(random, names):
    """Metadata that GenEval's prompts do not give: several of a colour, chains of positions, other classes
    excluded."""
    of = [names[i] for i in random.permutation(80)[:4]]
    include = []
    for i in range(random.randint(1, 4)):
        need = {"class": of[i], "count": int(random.randint(1, 4))}
        if random.rand() < 0.4:
            need["color"] = COLORS[random.randint(10)]
        if i and random.rand() < 0.6:
            need["position"] = [list(RELATIONS)[random.randint(4)], int(random.randint(i))]
        include.append(need)
    tag = ("counting", "two_object")[random.randint(2)]
    line = {"tag": tag, "include": include, "prompt": f"invented {random.randint(10**6)}"}
    if random.rand() < 0.5:
        line["exclude"] = [{"class": of[3], "count": int(random.randint(1, 3))}]
    return line


def sharpened(weights):
    """Weights of the tiny detector that make it sure of some things."""
    return {name: value * 4 if name == "class_predictor.weight" else value for name, value in weights.items()}


def blob(width, height):
    """A mask (height, width) of bools, and the box around it."""
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    mask = ((x - 0.55) / 0.3) ** 2 + ((y - 0.4) / 0.35) ** 2 < 1 + 0.2 * np.sin(30 * x)
    down, across = np.where(mask)
    return mask, (int(across.min()), int(down.min()), int(across.max()) + 1, int(down.max()) + 1)
