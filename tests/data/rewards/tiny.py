"""Weights, pictures and words that come out alike everywhere: what the references and the tests both use.

numpy's RandomState is frozen, so weights need not be stored: each tensor follows from its name.
"""

import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SIZES = [(1216, 832), (640, 480), (333, 517), (224, 224), (97, 301)]  # width, height
PROMPTS = [
    "a photo of three red circles on a grey background",
    "A painting of “the old café”, éclairs &amp; naïve art: 12 birds don't fly, 50% off!!",
    "an astronaut riding a horse, " * 12 + "on the moon",
    "x",
]
TEXTS = [
    *PROMPTS,
    "",
    "  spaced \t out\n words ",
    "ﬁne ﬂowers, ＦＵＬＬ　ｗｉｄｔｈ！",
    "‘single’ and “double” quotes",
    "a &lt;b&gt; &amp;amp; c",
    "一只红色的猫 and 日本語",
    "emoji 🦊🌲 and ½ cup; i'm, we've, they'll, he'd, it's",
    "UPPER lower MiXeD",
    "snake_case kebab-case 3.1415 10,000",
    "e\u0301 composed and \u00e9",
    "...!!!???---",
    "bell\x07 in a prompt",
]
# BERT's layout with letters for words.
BERT_WORDS = [
    "[PAD]",
    "[unused0]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz0123456789",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"),
    *"!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~",
    "a",
    "photo",
    "of",
    "red",
    "circle",
    "##s",
    "on",
    "the",
    "grey",
    "background",
    "painting",
    "old",
    "cafe",
    "一",
    "只",
    "猫",
    "##ing",
    "##ed",
    "three",
    "horse",
    "moon",
]
BERT_WORDS = list(dict.fromkeys(BERT_WORDS))

# Sizes of the models; heads are as wide as in the published ones, where their number follows from it.
VISION = {"width": 128, "layers": 2, "heads": 2, "mlp": 512}
TEXT = {"width": 64, "layers": 2, "heads": 2, "mlp": 128}
HPS = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 160, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
CLIP = {
    "embed_dim": 48,
    "image_resolution": 224,
    "vision_layers": 2,
    "vision_width": 128,
    "vision_patch_size": 14,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 2,
}
PICK = {
    "projection_dim": 48,
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "hidden_act": "gelu",
        "num_attention_heads": 2,
        "projection_dim": 48,
        "vocab_size": 49408,
    },
    "vision_config": {
        "hidden_size": 160,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "hidden_act": "gelu",
        "num_attention_heads": 2,
        "projection_dim": 48,
        "patch_size": 14,
        "image_size": 224,
    },
}


def weights(shapes):
    """name -> float32 array of that shape, the same on every machine."""
    return {name: _weight(name, tuple(shape)) for name, shape in shapes.items()}


def _weight(name, shape):
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("position_ids"):
        return np.arange(shape[-1]).reshape(shape)
    if name.endswith("logit_scale"):
        return np.array(np.log(100.0), dtype=np.float32)
    values = random.standard_normal(shape)
    if len(shape) < 2:
        is_gain = name.endswith("weight")  # of a layer norm
        return (is_gain + 0.2 * values).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    scale = 0.5 if "embed" in name else 1.5 / fan_in**0.5
    return (scale * values).astype(np.float32)


def picture(width, height):
    """(height, width, 3) bytes: slopes, edges and noise, so that every way of resizing shows."""
    random = np.random.RandomState(width * 10007 + height)
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    red = 255 * x
    green = 255 * ((x * 7 + y * 3) % 1 > 0.5)
    blue = 127 + 120 * np.sin(40 * x * y + 5 * y)
    noise = random.randint(-40, 41, (height, width, 3))
    return np.clip(np.stack([red, green, blue], axis=-1) + noise, 0, 255).astype(np.uint8)
