"""No HTML from a prompt, a file's name, a judge's or a rewriter's words in a real ComfyUI.

In both of its node renderers: in our views, in stock nodes that show our texts, in messages of what failed.
"""

import json
import shutil

import pytest
from PIL import Image

from ..fake_endpoint import answer, playing
from .browser import Browser

pytestmark = pytest.mark.comfyui
MARKS = (
    '<img src=x onerror=ran()> "><svg onload=ran()> <script>ran()</script> '
    "</textarea><img src=x onerror=ran()> "
    "[link](javascript:ran()) ![picture](x) **bold** <a href='javascript:ran()'>link</a> "
    "<iframe srcdoc='<script>parent.ran()</script>'></iframe> {{ran()}} ${ran()} `<img src=x onerror=ran()>`"
)
NAME = "<img src=x onerror=ran()>"  # may be a file's and a model's
FAULTS = ('picture "><svg onload=ran()>', f"picture {NAME}", "picture <script>ran()</script>")
FOREIGN = "img[src='x'], [onerror], [onload], a[href^='javascript:'], iframe[srcdoc]"


def talk(body):
    """A server that rewrites and judges, each in words with HTML in them."""
    *_, last = body["messages"]
    if not isinstance(last["content"], list):
        return answer(f"<reason>reason {MARKS}</reason><prompt>rewrite {MARKS}</prompt>")
    looks = any(part["type"] == "image_url" for part in last["content"])
    return answer("No" if looks else "\n".join(f"- {fault}" for fault in FAULTS))


def graph(url: str) -> dict:
    """Our nodes with a view, and stock nodes that show their texts and a picture with such a name."""
    sampler = {
        "model": ["1", 0],
        "vae": ["1", 2],
        "negative": ["7", 0],
        "latent_image": ["8", 0],
        "seed": 1,
        "steps": 2,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "simple",
    }
    prompt = f"prompt {MARKS}"
    words = {"variants": 1, "seed": 0, "locked": False, "locked_prompt": "", "critique": ""}
    nodes: dict[str, tuple[str, dict]] = {
        "1": ("RepriseLoadShapeWorld", {}),
        "2": ("RepriseLoadRewriter", {"rewriter": f"chat:{NAME}@{url}"}),
        "3": ("RepriseLoadJudge", {"judge": f"vlm:{NAME}@{url}#checklist"}),
        "4": ("RepriseRewriter", {"prompt": prompt, "rewriter": ["2", 0], **words}),
        "7": ("CLIPTextEncode", {"text": "", "clip": ["1", 1]}),
        "8": ("EmptySD3LatentImage", {"width": 128, "height": 128, "batch_size": 1}),
        "9": (
            "RepriseParmBestOfN",
            {
                **sampler,
                "positive": ["7", 0],
                "denoise": 1.0,
                "judge": ["3", 0],
                "prompt": prompt,
                "candidates": 2,
                "prune": "none",
            },
        ),
        "10": (
            "RepriseReflectionLoop",
            {
                **sampler,
                "clip": ["1", 1],
                "rewriter": ["2", 0],
                "judge": ["3", 0],
                "prompt": prompt,
                "rounds": 1,
                "correction": "draw again",
                "strength": 0.75,
            },
        ),
        "11": ("LoadImage", {"image": f"{NAME}.png"}),
        "12": ("RepriseRewardScorer", {"images": ["11", 0], "prompt": prompt, "judge": ["3", 0]}),
        "13": ("PreviewAny", {"source": ["4", 0]}),
        "14": ("PreviewAny", {"source": ["10", 3]}),
        "15": ("SaveImage", {"images": ["9", 0], "filename_prefix": NAME}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


@pytest.fixture
def names(server):
    """A picture and a rewriter with HTML in their names."""
    picture = server.base / "input" / f"{NAME}.png"
    picture.parent.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), "red").save(picture)
    model = server.base / "models" / "reprise" / "rewriters" / NAME
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "qwen2"}')
    yield
    picture.unlink()
    shutil.rmtree(model)


def node(kind: str) -> str:
    return f"app.graph._nodes.find(n => n.comfyClass === '{kind}')"


def view(kind: str, key: str) -> str:
    return f"{node(kind)}.widgets.find(w => w.name === '{key}').element"


def check(page: Browser) -> None:
    """Nothing of a text ran, or runs when the mouse goes over everything, which opens all tooltips."""
    page.js(
        "for (const one of document.querySelectorAll('*'))"
        " for (const type of ['mouseover', 'mouseenter']) one.dispatchEvent(new Event(type))"
    )
    assert page.js(f"[...document.querySelectorAll({json.dumps(FOREIGN)})].map(one => one.outerHTML)") == []
    assert page.js("window.foreign") is None
    assert not [error for error in page.errors if "reprise" in error], page.errors


@pytest.mark.parametrize("renderer", [pytest.param("LiteGraph", marks=pytest.mark.long), "Vue"])
def test_no_text_becomes_html(server, names, tmp_path, renderer):
    server.http.post("/settings/Comfy.TutorialCompleted", json=True)
    server.http.post("/settings/Comfy.VueNodes.Enabled", json=renderer == "Vue")
    page = Browser(1600, 1000)
    ran = "window.ran = () => { window.foreign = true; };"
    shown = {
        view("RepriseRewriter", "reprise_rewrite"): (f"rewrite {MARKS}", f"reason {MARKS}"),
        view("RepriseReflectionLoop", "reprise_reflection"): (*FAULTS, f"rewrite {MARKS}"),
        view("RepriseRewardScorer", "reprise_scores"): (*FAULTS, f"vlm:{NAME}"),
        view("RepriseParmBestOfN", "reprise_parm"): (f"vlm:{NAME}",),
    }
    try:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=ran)
        page.open(f"http://127.0.0.1:{server.port}/")
        with playing(talk) as endpoint:
            page.js(f"app.loadApiJson({json.dumps(graph(endpoint.url))}, {json.dumps(NAME)})")
            page.until(view("RepriseRewriter", "reprise_rewrite"))
            page.run()
            for element, texts in shown.items():
                for text in texts:
                    page.until(f"{element}.textContent.includes({json.dumps(text)})")
            page.js("void (app.canvas.ds.scale = 0.6, app.canvas.ds.offset = [20, 60])")
            page.screenshot(tmp_path / "shown.png")
            check(page)

            # What fails is told with the name of the model and with what it said.
            endpoint.plays = [answer(f"maybe {MARKS}")]
            page.js(f"void ({node('RepriseParmBestOfN')}.widgets.find(w => w.name === 'seed').value = 5)")
            page.run()
            open_details = (
                "[...document.querySelectorAll('button')].find(b => b.textContent.includes('View details'))"
            )
            told = f"document.body.textContent.includes({json.dumps(f'maybe {NAME}')})"
            page.until(f"({open_details}?.click(), {told})")
            page.screenshot(tmp_path / "failed.png")
            check(page)
    finally:
        page.close()
