"""Images per second and memory of our judges, alone or compared with the published packages.

Both sides load the same random weights of full size, in files of the published format, and score the same
picture files. Each is its own process (`inside/judge.py`), and they take turns. If their scores differ by
more than TOLERANCE, the measurement ends: it would compare different functions.

PickScore and CLIPScore are not measured: PickScore has only a model card, no package; CLIPScore's package
loads only OpenAI's own file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, RepriseError, UnknownName
from .parm import ratio_interval
from .process import Process

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SCRIPT = Path(__file__).parent / "inside" / "judge.py"
PACKAGES = {"image-reward": "image-reward", "hps-v2.1": "hpsv2"}  # judge -> the published package
TOLERANCE = 1e-3
PROMPT = "a large red circle at the top left and a small blue star in the center, on a grey background"


def bench(
    *,
    judges: Sequence[str] = (),
    reference: Path | None = None,
    images: int = 4,
    pairs: int = 5,
    size: int = 1024,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The result (design.md 5) of `pairs` calls of each side with 1 picture and with `images` pictures.

    Pictures are `size` pixels wide and high. `reference` is a Python with the packages
    (tests/data/rewards/README.md). With it a row's `overall` is our images per second over theirs, without it
    our images per second, with its 95 % interval. Raises as `check`.
    """
    judges, packages = check(judges, reference)
    pythons = {"ours": sys.executable, **({"reference": str(reference)} if reference else {})}
    rows, ready = [], {}
    with tempfile.TemporaryDirectory(prefix="reprise-bench-") as folder:
        pictures = draw_pictures(Path(folder), images, size, seed)
        for name in judges:
            with tempfile.TemporaryDirectory(dir=folder) as inner, ExitStack() as running:
                files = Path(inner)
                if progress:
                    progress(f"{name}, random weights", 0, 1)
                write_published(name, files, seed)
                sides = [
                    running.enter_context(JudgeProcess(pythons[kind], kind, name, files)) for kind in pythons
                ]
                ready = {side.kind: side.read_answer() for side in sides}
                for count in sorted({1, images}):
                    calls = take_turns(sides, pictures[:count], pairs, f"{name}, {count} a call", progress)
                    rows += rows_of(name, count, *calls, packages=packages)
    settings = {
        "images": images,
        "pairs": pairs,
        "pixels": size,
        "seed": seed,
        "prompt": PROMPT,
        "tolerance": TOLERANCE,
        "sides": ready,
        "reference": packages or None,
    }
    return {"name": "rewards", "rows": rows, "settings": settings}


def check(judges: Sequence[str], reference: Path | None) -> tuple[list[str], dict[str, str]]:
    """(judges to measure: all if `judges` is empty, `packages_of` the reference).

    Raises UnknownName and BadInput.
    """
    for name in judges:
        if name not in PACKAGES:
            raise UnknownName("judge to measure", name, PACKAGES)
    judges = list(dict.fromkeys(judges)) or list(PACKAGES)
    return judges, packages_of(reference, judges) if reference else {}


def packages_of(python: Path, judges: Sequence[str]) -> dict[str, str]:
    """Versions of the packages of `judges`, and of torch and transformers, in the environment of `python`.

    Raises BadInput if `python` is no Python interpreter, or lacks one of the packages.
    """
    code = (
        "import json, sys; from importlib.metadata import distributions; "
        "found = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in distributions()}; "
        "print(json.dumps({n: found.get(n) for n in sys.argv[1:]}))"
    )
    needed = [PACKAGES[name] for name in judges]
    try:
        done = subprocess.run(
            [str(python), "-c", code, *needed, "torch", "transformers"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise BadInput(
            f"--reference must be a Python interpreter, got {python}; give the one of an "
            "environment with image-reward and hpsv2"
        ) from error
    lost = [name for name in needed if not found[name]]
    if lost:
        raise BadInput(
            f"{python} has no {' and no '.join(lost)}; install image-reward 1.5 and hpsv2 1.2.0 "
            "there, as tests/data/rewards/README.md says"
        )
    return found


class JudgeProcess(Process):
    """A judge in its own process."""

    def __init__(self, python: str | Path, kind: str, name: str, folder: Path):
        super().__init__(kind, [python, SCRIPT, kind, name, folder], folder)

    def score(self, pictures: Sequence[Path]) -> dict[str, Any]:
        """Seconds, scores and memory peaks of a call. Raises RepriseError if the process failed."""
        return self.ask({"pictures": [*map(str, pictures)], "prompt": PROMPT})


def take_turns(
    sides: Sequence[JudgeProcess],
    pictures: Sequence[Path],
    pairs: int,
    stage: str,
    progress: Callable[[str, int, int], None] | None,
) -> list[list[dict[str, Any]]]:
    """`pairs` answers of each side, in turns, after a first call of each that is not counted."""
    found: list[list[dict[str, Any]]] = [[] for _ in sides]
    for turn in range(pairs + 1):
        order = range(len(sides)) if turn % 2 else reversed(range(len(sides)))
        for i in order:
            answer = sides[i].score(pictures)
            if turn:
                found[i].append(answer)
        if progress:
            progress(stage, turn, pairs)
    return found


def rows_of(
    name: str,
    count: int,
    ours: Sequence[dict[str, Any]],
    theirs: Sequence[dict[str, Any]] = (),
    *,
    packages: dict[str, str],
) -> list[dict[str, Any]]:
    """A row of our calls alone; or a row of our speed over theirs, and one without their reading of the file.

    Raises RepriseError if the scores differ.
    """
    seconds = [call["seconds"] for call in ours]
    title = f"{name}, {count} a call"
    cost = {"images_per_second": _per_second(count, seconds), **_peaks(ours)}
    if not theirs:
        rate = ratio_interval([count] * len(seconds), seconds)
        return [{"name": f"{title}: images per second", "overall": rate, "tasks": {}, "cost": cost}]
    pairs = [pair for a, b in zip(ours, theirs) for pair in zip(a["scores"], b["scores"], strict=True)]
    difference = max((abs(a - b) for a, b in pairs), key=lambda apart: (apart != apart, apart))  # NaN first
    if not difference <= TOLERANCE:
        raise RepriseError(
            f"scores of {name} and its reference differ by {difference:.2g}, expected at most {TOLERANCE}; "
            "they compute different functions, so their speeds cannot be compared"
        )
    spread = max(theirs[0]["scores"]) - min(theirs[0]["scores"])
    package = f"{PACKAGES[name]} {packages[PACKAGES[name]]}"
    rows = []
    whole = [call["seconds"] for call in theirs]
    steady = [call["seconds"] - call["reading"] for call in theirs]
    kinds = {"": whole} if steady == whole else {"": whole, " without reading its file": steady}
    for what, spent in kinds.items():
        rows.append(
            {
                "name": f"{title}, over {package}{what}",
                "overall": ratio_interval(spent, seconds),
                "tasks": {},
                "cost": {
                    **cost,
                    "reference_images_per_second": _per_second(count, spent),
                    **{f"reference_{key}": value for key, value in _peaks(theirs).items()},
                },
                "score_difference": float(f"{difference:.2g}"),
                "score_spread": float(f"{spread:.2g}"),
            }
        )
    return rows


def _per_second(count: int, seconds: Sequence[float]) -> float:
    return round(count * len(seconds) / sum(seconds), 4)


def _peaks(calls: Sequence[dict[str, Any]]) -> dict[str, float]:
    last = calls[-1]
    gpu = {"gpu_peak_gb": round(last["gpu_peak"] / 1e9, 3)} if last["gpu_peak"] else {}
    return {"peak_gb": round(last["peak"] / 1e9, 3), **gpu}


def draw_pictures(folder: Path, count: int, size: int, seed: int) -> list[Path]:
    """Smooth random pictures with some noise, as PNG files in `folder`."""
    import torch
    from PIL import Image

    random, paths = torch.Generator().manual_seed(seed), []
    for i in range(count):
        coarse = torch.rand(1, 3, 8, 8, generator=random)
        smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")[0]
        noisy = smooth + 0.02 * torch.randn(smooth.shape, generator=random)
        pixels = (noisy.clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous().numpy()
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def write_published(judge: str, folder: Path, seed: int) -> None:
    """Write the judge's files to `folder`: in the published format and size, with random weights."""
    import torch

    from ...rewards.published.files import needs
    from ...rewards.published.image_reward import ImageReward

    weights = folder / needs(judge).files[0].name
    if judge == "image-reward":
        torch.save(random_weights(published_shapes(judge), seed, torch.float32), weights)
        write_vocabulary(folder / "vocab.txt", ImageReward.text["vocab_size"] - 2)
    else:
        torch.save({"state_dict": random_weights(published_shapes(judge), seed, torch.float16)}, weights)


def published_shapes(judge: str) -> dict[str, list[int]]:
    """Names and shapes of the weights in the judge's published file, derived from our class.

    Several of our weights may be equal parts of one of the file's, and some are stored transposed.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel

    from ...core.model_files import quiet_loading
    from ...rewards.published import clip, hps, image_reward

    with quiet_loading(), torch.device("meta"):
        if judge == "image-reward":
            module, source = image_reward.ImageReward.build(), image_reward.source
        else:
            module, source = CLIPModel(CLIPConfig(**hps.HPSv21.config)), clip.open_clip_source
    found: dict[str, list[int]] = {}
    for name, weight in module.state_dict().items():
        key, pick = source(name)
        shape = list(weight.shape)
        if key in found:
            found[key][0] += shape[0]
        elif ".attn." not in key and pick(torch.empty(1, 2)).shape == (2, 1):
            found[key] = shape[::-1]
        else:
            found[key] = shape
    return found


def random_weights(shapes: dict[str, list[int]], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of these names and shapes, scaled so that activations keep their size through many layers."""
    import torch

    random, made = torch.Generator().manual_seed(seed), {}
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=random)
        if len(shape) < 2:  # biases, and the gains of layer norms
            value = 0.1 * value + key.endswith("weight")
        elif "embed" not in key:
            value /= (value.numel() / shape[0]) ** 0.5
        made[key] = value.to(dtype)
    return made


def write_vocabulary(path: Path, size: int) -> None:
    """Write `size` lines in the format of bert-base-uncased's vocab.txt, with letters and PROMPT's words."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ",",
        *letters,
        *("##" + c for c in letters),
        *PROMPT.replace(",", "").split(),
    ]
    words = list(dict.fromkeys(words))
    words += [f"[unused{i}]" for i in range(size - len(words))]
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
