"""The editor's workflows come out as the editor itself queues them."""

import json
import subprocess
from pathlib import Path

import pytest

from reprise.backend.renderers.comfyui.files import read_workflow

from ..nodes.conftest import needed
from .browser import ROOT, Browser

pytestmark = pytest.mark.comfyui

# Templates of ComfyUI, each for a kind: subgraphs in each other, with widgets of their own and ids that stand
# twice; nodes that are muted, bypassed or only the editor's; choices that show further inputs.
TEMPLATES = (
    "flux_depth_lora_example",
    "flux_schnell_full_text_to_image",
    "hidream_e1_full",
    "hunyuan_video_text_to_video",
    "audio_ace_step_1_5_checkpoint",
    "image_netayume_lumina_t2i",
    "image_newbieimage_exp0_1-t2i",
    "sdxl_refiner_prompt_example",
    "utility_image_stitch",
    "video_bernini_r_image_editing",
    "video_wan2_2_5B_ti2v",
)
FOLDER = "import comfyui_workflow_templates_json as t; print(t.__path__[0] + '/templates')"


def templates():
    folder = subprocess.run([str(needed()[1]), "-c", FOLDER], capture_output=True, text=True).stdout.strip()
    paths = [Path(folder) / f"{name}.json" for name in TEMPLATES] if folder else []
    return [path for path in paths if path.is_file()]


def queued(page, path):
    """What the editor would queue, without what the server ignores."""
    workflow = path.read_text(encoding="utf-8")
    graph = json.loads(
        page.js(
            f"(async () => {{ await app.loadGraphData({workflow}, true, true, null);"
            "return JSON.stringify((await app.graphToPrompt()).output) })()"
        )
    )
    return {name: (node["class_type"], node["inputs"]) for name, node in graph.items()}


def test_conversion_is_what_the_editor_queues(server):
    server.http.post("/settings/Comfy.TutorialCompleted", json=True)
    classes = server.http.get("/object_info").json()
    paths = [*(ROOT / "workflows").glob("*.json"), *templates()]
    page = Browser()
    try:
        page.open(f"http://127.0.0.1:{server.port}/")
        for path in paths:
            converted = read_workflow(path, lambda: classes)
            ours = {name: (node["class_type"], node["inputs"]) for name, node in converted.items()}
            assert ours == queued(page, path), path.name
    finally:
        page.close()
