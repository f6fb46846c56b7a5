"""Runs GenEval's own code, and what it rests on, on scenes.py; writes golden.json. See README.md.

Usage: python make_golden.py GENEVAL MMDET: a checkout of djghosh13/geneval and an unpacked mmdet wheel.
"""

import importlib.util
import json
import sys
import tempfile
import types
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.nn import functional  # noqa: E402
from transformers import (  # noqa: E402
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
)

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "rewards")]
import scenes  # noqa: E402
import tiny  # noqa: E402

GENEVAL, MMDET = Path(sys.argv[1]), Path(sys.argv[2])


def stub(name, **content):
    """A module that holds `content` only, in the place of one that needs CUDA or is not needed."""
    module = types.ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module
    return module


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BaseModule(torch.nn.Module):
    def __init__(self, init_cfg=None):
        super().__init__()


def fusion_head():
    """mmdet's MaskFormerFusionHead as GenEval's config makes it, and its bbox2result."""
    heads = "mmdet.models.seg_heads.panoptic_fusion_heads"
    folders = ("mmdet.core", "mmdet.core.evaluation", "mmdet.models", "mmdet.models.seg_heads", heads)
    for name in ("mmdet", *folders):
        stub(name, __path__=[], __file__=str(MMDET / "mmdet" / "__init__.py"))
    stub("mmdet.apis", inference_detector=None, init_detector=None)
    stub("mmcv", runner=stub("mmcv.runner", BaseModule=BaseModule))
    stub("pycocotools", mask=stub("pycocotools.mask"))
    stub("mmdet.core.evaluation.panoptic_utils", INSTANCE_OFFSET=1000)
    registry = types.SimpleNamespace(register_module=lambda: lambda cls: cls)
    stub("mmdet.models.builder", HEADS=registry, build_loss=None)
    load("mmdet.core.mask", MMDET / "mmdet/core/mask/utils.py")
    boxes = load("mmdet.core.bbox", MMDET / "mmdet/core/bbox/transforms.py")
    folder = MMDET / "mmdet/models/seg_heads/panoptic_fusion_heads"
    load(f"{heads}.base_panoptic_fusion_head", folder / "base_panoptic_fusion_head.py")
    head = load(f"{heads}.maskformer_fusion_head", folder / "maskformer_fusion_head.py").MaskFormerFusionHead
    head.__abstractmethods__ = frozenset()
    made = head(80, 0, test_cfg={"panoptic_on": False, "instance_on": True, "max_per_image": 100})
    return made, boxes.bbox2result


def original():
    """evaluate_images.py as it is, on a CPU."""
    there = torch.cuda.is_available
    torch.cuda.is_available = lambda: True  # it refuses to be imported without
    module = load("evaluate_images", GENEVAL / "evaluation" / "evaluate_images.py")
    torch.cuda.is_available = there
    module.DEVICE = "cpu"
    # The defaults of its main block.
    module.THRESHOLD, module.COUNTING_THRESHOLD, module.MAX_OBJECTS = 0.3, 0.9, 16
    module.NMS_THRESHOLD, module.POSITION_THRESHOLD = 1.0, 0.1
    module.args = types.SimpleNamespace(options={})
    module.object_detector = None
    names = (GENEVAL / "evaluation" / "object_names.txt").read_text(encoding="utf-8")
    module.classnames = [line.strip() for line in names.splitlines()]
    return module


def verdicts(module):
    """A digit per scene: 1 where the original calls it right."""
    classify, found, shown = module.color_classification, [], {}
    module.inference_detector = lambda *_: shown["boxes"]
    module.color_classification = lambda _, objects, __: [shown["colors"][row[4]] for row, _ in objects]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "picture.png")
        Image.new("RGB", (8, 8)).save(path)
        for line, seen in scenes.scenes(module.classnames):
            rows = [
                [(*box, chance) for name, chance, box, _ in seen if name == wanted]
                for wanted in module.classnames
            ]
            shown["boxes"] = [np.array(of, dtype=float).reshape(-1, 5) for of in rows]
            shown["colors"] = {chance: color for _, chance, _, color in seen}
            found.append((line, module.evaluate_image(path, line)["correct"]))
    module.color_classification = classify
    tags = [(line["tag"], line["prompt"].startswith("invented"), right) for line, right in found]
    for tag, invented in sorted({row[:2] for row in tags}):
        rights = [row[2] for row in tags if row[:2] == (tag, invented)]
        print(tag, "invented" * invented, len(rights), sum(rights))
    return "".join(str(int(right)) for _, right in found)


def colors(module):
    """Logits of the ten colours for blobs in pictures, and what the original makes of them."""
    shapes = json.loads((HERE.parent / "rewards" / "golden.json").read_text())["openai_clip"]["shapes"]
    state = {name: torch.from_numpy(value) for name, value in tiny.weights(shapes).items()}
    open_clip.model.convert_weights_to_fp16 = lambda _: None  # it would round tiny weights
    module.clip_model = open_clip.model.build_model_from_openai_state_dict(state)
    module.transform = open_clip.image_transform(224, is_train=False)
    module.tokenizer = open_clip.get_tokenizer("ViT-L-14")
    run, seen, found = module.zsc.run_classification, [], []

    def watched(*arguments):
        seen.append(run(*arguments))
        return seen[-1]

    module.zsc.run_classification = watched
    for width, height in scenes.SIZES:
        mask, box = scenes.blob(width, height)
        picture = Image.fromarray(tiny.picture(width, height))
        for name in ("car", "hot dog", "tv remote"):
            (color,) = module.color_classification(picture, [((*box, 1.0), mask)], name)
            logits = seen[-1][0][0]
            assert module.COLORS[int(logits.argmax())] == color
            found.append({"size": [width, height], "name": name, "logits": logits.tolist(), "color": color})
    print([(row["color"], round(max(row["logits"]), 2)) for row in found])
    return found


def detector():
    """Shapes of the tiny detector under their published names, and what mmdet's head makes of its output."""
    head, by_class = fusion_head()
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig.from_dict(dict(scenes.DETECTOR)))
    own = model.state_dict()
    shapes = {name: list(value.shape) for name, value in own.items()}
    made = scenes.sharpened(tiny.weights(shapes))
    # What follows from the sizes keeps its values.
    kept = {
        name: own[name] if name.endswith("relative_position_index") else torch.from_numpy(np.array(value))
        for name, value in made.items()
    }
    model.load_state_dict(kept)
    model.eval()
    found = {}
    for width, height in scenes.SIZES:
        # mmcv's rescale_size for img_scale=(1333, 800), the whole scaled from 800 to SIDE.
        scale = min(scenes.SIDE * 1333 / 800 / max(width, height), scenes.SIDE / min(width, height))
        wide, high = int(width * scale + 0.5), int(height * scale + 0.5)
        processor = Mask2FormerImageProcessor(
            size={"height": high, "width": wide},
            size_divisor=1,
            resample=2,
            image_mean=scenes.MEAN,
            image_std=scenes.STD,
        )
        pixels = processor(Image.fromarray(tiny.picture(width, height)), return_tensors="pt")["pixel_values"]
        assert pixels.shape[2:] == (high, wide)
        pixels = functional.pad(pixels, (0, -wide % 32, 0, -high % 32))
        with torch.no_grad():
            out = model(pixels)
            # As mmdet's MaskFormerHead.simple_test does.
            masks = functional.interpolate(
                out.masks_queries_logits, tuple(pixels.shape[2:]), mode="bilinear", align_corners=False
            )
            meta = {"img_shape": (high, wide, 3), "ori_shape": (height, width, 3)}
            (result,) = head.simple_test(out.class_queries_logits, masks, [meta], rescale=True)
        labels, boxes, masks = result["ins_results"]
        areas = {tuple(row.tolist()): int(mask.sum()) for row, mask in zip(boxes, masks)}
        sure = [(label, row.tolist()) for label, of in enumerate(by_class(boxes, labels, 80)) for row in of]
        rows = [
            {"label": label, "box": row[:4], "confidence": row[4], "area": areas[tuple(row)]}
            for label, row in sure
            if row[4] > 0.1
        ]
        found[f"{width}x{height}"] = sorted(rows, key=lambda row: -row["confidence"])
        print(width, height, [(row["label"], round(row["confidence"], 3), row["box"]) for row in rows])
    return {"shapes": shapes, "found": found}


def main():
    torch.manual_seed(0)
    golden = {"detector": detector()}
    module = original()
    golden |= {"verdicts": verdicts(module), "colors": colors(module)}
    (HERE / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
