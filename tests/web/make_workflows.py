"""Makes `workflows/NAME.json` and its picture from the API-format graph of the same name.

Usage: `python -m tests.web.make_workflows [NAME…]` in the repository, with a ComfyUI as the tests need it.
The API-format graph in `tests/data/api` has the nodes, and in `_meta` their positions; the frontend itself
writes the file. Graphs that need no download are run first, so that the picture shows their results. Files of
checkpoints have the names of ComfyUI's own templates.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from tests.nodes.conftest import Server
from tests.web.browser import Browser

ROOT = Path(__file__).resolve().parents[2]
API, WORKFLOWS = ROOT / "tests" / "data" / "api", ROOT / "workflows"
HUB = "https://huggingface.co"
MODELS = {
    "flux1-dev-fp8.safetensors": f"{HUB}/Comfy-Org/flux1-dev/resolve/main/flux1-dev-fp8.safetensors",
    "sd_xl_base_1.0.safetensors": f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/"
    "sd_xl_base_1.0.safetensors",
}
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}
_JUDGE = (
    "\n\nThe judge is ImageReward: put `ImageReward.pt` where `reprise models` says, or choose another one."
)
NOTES = {
    "flux_best_of_n": "## Best of 8 on FLUX.1 dev\nEight seeds start; unpromising ones stop early; the best "
    "is kept. **CFG stays 1**: FLUX dev has its own guidance." + _JUDGE,
    "sdxl_best_of_n": "## Best of 8 on SDXL\nEight seeds start; unpromising ones stop early; the best is "
    "kept." + _JUDGE,
    "rewrite_and_score": "## What the rewrite gains\nThe same four seeds, drawn from your prompt and from "
    "its rewrite, scored against **your** prompt. Runs at once on a CPU.",
    "prip_refiner": "## What the refinement gains\nThe same four seeds, drawn from your prompt and from its "
    "refinement (PRIP), scored by ShapeWorld's preference judge. Runs at once on a CPU.",
    "reflection_loop": "## Draw, judge, correct\nIn each round the judge says what is wrong and the rewriter "
    "corrects the prompt; the best picture is kept. Runs at once on a CPU.",
    "shapeworld_quick_start": "## Press Run\nYour prompt is rewritten, eight seeds start, unpromising ones "
    "stop early, the best is kept. Runs at once on a CPU.",
}
_PLACE = """(async (graph, name, note, models) => {
  await app.loadApiJson(graph, name);
  for (const [id, { _meta: at }] of Object.entries(graph)) {
    const node = app.graph.getNodeById(id) ?? app.graph.getNodeById(Number(id));
    node.pos = at.pos; node.setSize(at.size);
    if (at.title) node.title = at.title;
    for (const widget of node.widgets ?? []) {
      if (widget.name === "control_after_generate") widget.value = "fixed";
      if (models[widget.value]) node.properties.models =
        [{ name: widget.value, url: models[widget.value], directory: "checkpoints" }];
    }
  }
  const text = LiteGraph.createNode("MarkdownNote");
  text.pos = [40, -90]; text.setSize([690, 100]); text.title = "About";
  text.widgets[0].value = note;
  app.graph.add(text);
})"""
_CLEAN = """(() => {
  const saved = app.graph.serialize();
  for (const node of saved.nodes)
    for (const key of Object.keys(node.properties))
      if (key.startsWith("reprise") || key === "cnr_id" || key === "ver") delete node.properties[key];
  delete saved.extra; delete saved.id;
  return saved;
})()"""


def make(browser: Browser, server: Server, name: str) -> None:
    graph = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
    arguments = ", ".join(json.dumps(part) for part in (graph, name, NOTES[name], MODELS))
    browser.js(f"{_PLACE}({arguments})")
    time.sleep(1)
    saved = browser.js(_CLEAN)
    (WORKFLOWS / f"{name}.json").write_text(json.dumps(saved, ensure_ascii=False) + "\n", encoding="utf-8")
    if not any(used in json.dumps(graph) for used in MODELS):
        browser.run()
        time.sleep(2)
        _wait(server)
    _picture(browser, WORKFLOWS / f"{name}.jpg")


def _wait(server: Server, seconds: float = 600) -> None:
    """Until the queue is empty and the last pictures are loaded."""
    end = time.monotonic() + seconds
    while any(server.http.get("/queue").json().values()):
        if time.monotonic() > end:
            raise SystemExit(f"ComfyUI is still busy after {seconds:.0f} s")
        time.sleep(1)
    time.sleep(4)


def _picture(browser: Browser, where: Path) -> None:
    """The graph alone, fitted into the page, without menus."""
    browser.js("""(() => {
      const b = app.graph._nodes.map(n => n.getBounding()).reduce((a, c) => [
        Math.min(a[0], c[0]), Math.min(a[1], c[1]),
        Math.max(a[2], c[0] + c[2]), Math.max(a[3], c[1] + c[3])], [1e9, 1e9, -1e9, -1e9]);
      const ds = app.canvas.ds, w = innerWidth - 90, h = innerHeight - 110;
      ds.scale = Math.min(w / (b[2] - b[0] + 40), h / (b[3] - b[1] + 40));
      ds.offset = [70 / ds.scale - b[0] + 20, 80 / ds.scale - b[1] + 20];
      app.canvas.setDirty(true, true);
    })()""")
    time.sleep(1.5)
    shot = Path(tempfile.mkdtemp()) / "page.png"
    browser.screenshot(shot, {"x": 64, "y": 74, "width": 1700 - 64, "height": 1000 - 74})
    Image.open(shot).convert("RGB").save(where, quality=85, optimize=True)
    shutil.rmtree(shot.parent)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            server.wait(600)
            for setting, value in SETTINGS.items():
                server.http.post(f"/settings/{setting}", json=value)
            browser = Browser()
            try:
                browser.open(f"http://127.0.0.1:{server.port}/")
                for name in sys.argv[1:] or NOTES:
                    make(browser, server, name)
                    print(name, flush=True)
            finally:
                browser.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
