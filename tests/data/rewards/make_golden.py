"""Runs the reference implementations at tiny random size; writes golden.json, pixels.safetensors, keys.json.

See README.md for the environment. Usage: python make_golden.py [keys]; `keys` (only needed when a
reference changes) also builds the references at full size, which takes 5 GB and some minutes.
"""

import json
import math
import sys
import tempfile
import types
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
# What the packages import and do not need for scoring.
import packaging.version  # noqa: E402
import pkg_resources  # noqa: E402

pkg_resources.packaging = packaging
sys.modules["ImageReward.ReFL"] = types.ModuleType("ReFL")

import clip  # noqa: E402
import hpsv2.img_score  # noqa: E402
import ImageReward  # noqa: E402, F401
import numpy as np  # noqa: E402
import torch  # noqa: E402
from hpsv2.src.open_clip import factory  # noqa: E402
from hpsv2.src.open_clip.tokenizer import tokenize  # noqa: E402
from ImageReward.models.AestheticScore import AestheticScore  # noqa: E402
from ImageReward.models.BLIP import blip, vit  # noqa: E402
from ImageReward.models.CLIPScore import CLIPScore  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import (  # noqa: E402
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizerFast,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import tiny  # noqa: E402

IMAGE_REWARD = sys.modules["ImageReward.ImageReward"]


def filled(model):
    """The model with tiny.weights in it -> {name: shape}."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    values = tiny.weights(shapes)
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in values.items()})
    model.eval()
    return shapes


def pictures():
    return [(f"{w}x{h}", Image.fromarray(tiny.picture(w, h))) for w, h in tiny.SIZES]


def scores(score):
    """{size: [score of each prompt]}"""
    return {size: [float(score(prompt, picture)) for prompt in tiny.PROMPTS] for size, picture in pictures()}


def sampled(preprocess):
    return {size: preprocess(picture)[:, ::9, ::9].contiguous() for size, picture in pictures()}


def med_config(folder, **sizes):
    """med_config.json of THUDM/ImageReward, with other sizes."""
    settings = {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 0,
        "add_type_embeddings": False,
        "vocab_size": 30524,
        "encoder_width": 768,
        "add_cross_attention": True,
        **sizes,
    }
    path = Path(folder) / "med_config.json"
    path.write_text(json.dumps(settings))
    return str(path)


def bert(folder):
    path = Path(folder) / "vocab.txt"
    path.write_text("\n".join(tiny.BERT_WORDS) + "\n", encoding="utf-8")
    blip.BertTokenizer = types.SimpleNamespace(from_pretrained=lambda name: BertTokenizer(str(path)))


def image_reward(folder):
    bert(folder)
    v, t = tiny.VISION, tiny.TEXT
    from ImageReward.models.BLIP import blip_pretrain

    blip_pretrain.create_vit = lambda *_: (
        vit.VisionTransformer(
            img_size=224,
            patch_size=16,
            embed_dim=v["width"],
            depth=v["layers"],
            num_heads=v["heads"],
            mlp_ratio=v["mlp"] / v["width"],
            drop_path_rate=0.1,
        ),
        v["width"],
    )
    head = IMAGE_REWARD.MLP
    IMAGE_REWARD.MLP = lambda _: head(t["width"])
    model = IMAGE_REWARD.ImageReward(
        med_config(
            folder,
            hidden_size=t["width"],
            intermediate_size=t["mlp"],
            num_attention_heads=t["heads"],
            num_hidden_layers=t["layers"],
            vocab_size=len(tiny.BERT_WORDS) + 2,
        )
    )
    shapes = filled(model)
    IMAGE_REWARD.MLP = head
    read = model.blip.tokenizer(tiny.TEXTS, padding="max_length", truncation=True, max_length=35)
    return {"shapes": shapes, "scores": scores(model.score), "ids": read.input_ids}, sampled(model.preprocess)


def hps(folder):
    factory._MODEL_CONFIGS["ViT-H-14"] = tiny.HPS
    create = factory.create_model_and_transforms
    hpsv2.img_score.create_model_and_transforms = lambda name, _, **options: create(name, "", **options)
    hpsv2.img_score.initialize_model()
    model = hpsv2.img_score.model_dict["model"]
    shapes = filled(model)
    path = str(Path(folder) / "hps.pt")
    torch.save({"state_dict": model.state_dict()}, path)
    result = scores(lambda prompt, picture: hpsv2.img_score.score(picture, prompt, cp=path)[0])
    preprocess = hpsv2.img_score.model_dict["preprocess_val"]
    return {"shapes": shapes, "scores": result, "ids": tokenize(tiny.TEXTS).tolist()}, sampled(preprocess)


def openai_clip(folder):
    """CLIPScore and the aesthetic predictor of image-reward 1.5, over openai's own CLIP."""
    model = clip.model.CLIP(**tiny.CLIP)
    shapes = filled(model)
    preprocess = clip.clip._transform(224)
    clip.load = lambda *_, **__: (model, preprocess)

    def of_file(scorer):
        def score(prompt, picture):
            path = str(Path(folder) / "picture.png")
            picture.save(path)
            return scorer.score(prompt, path)

        return score

    aesthetic = AestheticScore(folder)
    aesthetic.mlp = type(aesthetic.mlp)(tiny.CLIP["embed_dim"])
    head = filled(aesthetic.mlp)
    ids = clip.tokenize(tiny.TEXTS, truncate=True).tolist()
    return {
        "shapes": shapes,
        "head": head,
        "ids": ids,
        "clip": scores(of_file(CLIPScore(folder))),
        "aesthetic": scores(of_file(aesthetic)),
    }, sampled(preprocess)


def pick_score(folder):
    """As on the model card of yuvalkirstain/PickScore_v1, one picture at a time."""
    encoder = clip.simple_tokenizer.SimpleTokenizer()
    (Path(folder) / "vocab.json").write_text(json.dumps(encoder.encoder))
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in encoder.bpe_ranks)])
    (Path(folder) / "merges.txt").write_text(merges + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizerFast(str(Path(folder) / "vocab.json"), str(Path(folder) / "merges.txt"))
    processor = CLIPProcessor(CLIPImageProcessor(), tokenizer)
    config = CLIPConfig(**tiny.PICK)
    model = CLIPModel(config)
    shapes = filled(model)

    @torch.no_grad()
    def score(prompt, picture):
        options = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
        image_inputs = processor(images=picture, **options)
        text_inputs = processor(text=prompt, **options)
        image_embs = model.get_image_features(**image_inputs)
        image_embs = image_embs / torch.norm(image_embs, dim=-1, keepdim=True)
        text_embs = model.get_text_features(**text_inputs)
        text_embs = text_embs / torch.norm(text_embs, dim=-1, keepdim=True)
        return (model.logit_scale.exp() * (text_embs @ image_embs.T)[0])[0]

    ids = [tokenizer(text, truncation=True, max_length=77).input_ids for text in tiny.TEXTS]
    pixels = sampled(lambda picture: processor(images=picture, return_tensors="pt")["pixel_values"][0])
    return {"shapes": shapes, "scores": scores(score), "ids": ids}, pixels


def mask2former_config():
    """facebook/mask2former-swin-small-coco-instance: the class's own sizes on Swin-S."""
    swin = SwinConfig(
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        embed_dim=96,
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Mask2FormerConfig(backbone_config=swin, num_labels=80)


def keys(folder):
    """Names and shapes at full size, as the published files hold them."""
    torch.nn.init.trunc_normal_ = torch.nn.init.normal_ = lambda tensor, *_, **__: tensor  # takes long
    real = Path(factory.__file__).parent / "model_configs" / "ViT-H-14.json"
    factory._MODEL_CONFIGS["ViT-H-14"] = json.loads(real.read_text())
    bert(folder)
    found = {}
    for name, build in (
        ("image-reward", lambda: IMAGE_REWARD.ImageReward(med_config(folder))),
        ("hps", lambda: factory.create_model("ViT-H-14", "")),
        ("geneval", lambda: Mask2FormerForUniversalSegmentation(mask2former_config())),
    ):
        model = build()
        found[name] = {key: list(value.shape) for key, value in model.state_dict().items()}
        print(name, len(found[name]), sum(map(math.prod, found[name].values())))
    return found


def main():
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if "keys" in sys.argv:
            (HERE / "keys.json").write_text(json.dumps(keys(folder), separators=(",", ":")) + "\n")
            return
        golden, pixels = {}, {}
        for build in (image_reward, hps, openai_clip, pick_score):
            golden[build.__name__], seen = build(folder)
            pixels |= {f"{build.__name__}/{size}": value for size, value in seen.items()}
            print(json.dumps({k: v for k, v in golden[build.__name__].items() if k not in ("shapes", "ids")}))
    (HERE / "golden.json").write_text(
        json.dumps(golden, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8"
    )
    save_file(pixels, str(HERE / "pixels.safetensors"))


if __name__ == "__main__":
    main()
