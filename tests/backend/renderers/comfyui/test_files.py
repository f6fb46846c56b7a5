"""Workflows are read from whatever ComfyUI saves them in."""

import json

import pytest
from PIL import Image, PngImagePlugin

from reprise.backend.core.errors import BadInput, RenderFailed
from reprise.backend.core.types import Job
from reprise.backend.factory import check_renderer, open_renderer
from reprise.backend.renderers.comfyui.files import read_workflow
from reprise.backend.renderers.settings import RendererSettings

from ....fake_comfyui import GRAPH, FakeComfyUI
from ....fake_comfyui import picture as drawn

PROMPT = json.dumps(GRAPH)
EDITOR = {"nodes": [{"id": 1, "type": "Text", "mode": 0, "widgets_values": ["a cat"]}], "links": []}
CLASSES = {"Text": {"input": {"required": {"value": ["STRING", {}]}}}}
SETTINGS = "a cat, <lora:x:1>\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 1"


def picture(size=8):
    return Image.new("RGB", (size, size), "red")


def png(path, **texts):
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    picture().save(path, pnginfo=chunks)


def webp(path, **texts):
    """As SaveAnimatedWEBP does."""
    exif = picture().getexif()
    for tag, (key, text) in zip((0x0110, 0x010F), texts.items()):
        exif[tag] = f"{key}:{text}"
    frames = [picture(), Image.new("RGB", (8, 8), "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], exif=exif, lossless=True)


def animated_png(path, **texts):
    """As SaveAnimatedPNG does."""
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add(b"comf", key.encode("latin-1") + b"\0" + text.encode("latin-1"), after_idat=True)
    frames = [picture(), Image.new("RGB", (8, 8), "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], pnginfo=chunks)


def video(path, **texts):
    """As SaveVideo and SaveWEBM do."""
    av = pytest.importorskip("av")
    options = {"movflags": "use_metadata_tags"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as made:
        for key, text in texts.items():
            made.metadata[key] = text
        stream = made.add_stream("libvpx-vp9" if path.suffix == ".webm" else "mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for packet in [*stream.encode(av.VideoFrame.from_image(picture(32))), *stream.encode(None)]:
            made.mux(packet)


def animated_png_of_one_frame(path, **texts):
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add(b"comf", key.encode("latin-1") + b"\0" + text.encode("latin-1"), after_idat=True)
    picture().save(path, pnginfo=chunks)


FILES = [
    ("c.png", animated_png_of_one_frame),
    ("a.png", png),
    ("a.webp", webp),
    ("b.png", animated_png),
    ("a.mp4", video),
    ("a.webm", video),
]


@pytest.mark.parametrize("name,save", FILES)
def test_a_picture_or_video_holds_the_graph_that_drew_it(tmp_path, name, save):
    save(tmp_path / name, prompt=PROMPT, workflow=json.dumps(EDITOR))
    assert read_workflow(tmp_path / name) == GRAPH


@pytest.mark.parametrize("name,save", FILES)
def test_one_with_the_editors_workflow_alone_is_converted(tmp_path, name, save):
    save(tmp_path / name, workflow=json.dumps(EDITOR))
    made = read_workflow(tmp_path / name, lambda: CLASSES)
    assert made["1"]["inputs"] == {"value": "a cat"}
    with pytest.raises(BadInput, match=r"for the editor.*server.*Export \(API\)"):
        read_workflow(tmp_path / name)


def test_a_video_of_video_helper_suite_holds_both_in_its_comment(tmp_path):
    video(tmp_path / "a.mp4", comment=json.dumps({"prompt": PROMPT, "workflow": json.dumps(EDITOR)}))
    assert read_workflow(tmp_path / "a.mp4") == GRAPH


@pytest.mark.parametrize(
    "text",
    [
        PROMPT,
        "\ufeff" + PROMPT,
        json.dumps({"prompt": GRAPH, "client_id": "x"}),
        json.dumps({"output": GRAPH, "workflow": EDITOR}),
    ],
)
def test_json_in_the_forms_that_a_server_and_the_editor_give(tmp_path, text):
    (tmp_path / "w.txt").write_text(text, encoding="utf-8")
    assert read_workflow(tmp_path / "w.txt", None) == GRAPH


def test_what_comfyui_writes_beside_a_nodes_inputs_is_left_out(tmp_path):
    graph = {name: {**made, "is_changed": [float("nan")], "widgets": {}} for name, made in GRAPH.items()}
    png(tmp_path / "a.png", prompt=json.dumps(graph))
    assert read_workflow(tmp_path / "a.png") == GRAPH


def test_a_damaged_graph_falls_back_to_the_editors_workflow(tmp_path):
    png(tmp_path / "a.png", prompt="{}", workflow=json.dumps(EDITOR))
    assert read_workflow(tmp_path / "a.png", lambda: CLASSES)["1"]["class_type"] == "Text"


def settings_in_exif(path, **texts):
    exif = picture().getexif()
    words = b"UNICODE\0" + texts["parameters"].encode("utf-16-be")
    exif.get_ifd(0x8769)[0x9286] = words
    picture().save(path, exif=exif)


@pytest.mark.parametrize("name,save", [("a.png", png), ("a.jpg", settings_in_exif)])
def test_settings_of_another_program_are_refused_with_the_words_found(tmp_path, name, save):
    save(tmp_path / name, parameters=SETTINGS)
    with pytest.raises(BadInput, match="Automatic1111.*no workflow.*a cat, <lora:x:1>") as caught:
        read_workflow(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_beside_a_graph_such_settings_do_not_matter(tmp_path):
    png(tmp_path / "a.png", parameters=SETTINGS, prompt=PROMPT)
    assert read_workflow(tmp_path / "a.png") == GRAPH


@pytest.mark.parametrize(
    "name,content,said",
    [
        ("gone.json", None, "cannot read the workflow .*No such file"),
        ("", None, "cannot read the workflow"),  # a folder
        ("a.json", b"", "is not JSON"),
        ("a.json", b"\x89PNG\r\n\x1a\n", "is not JSON"),
        ("a.json", b"[1, 2]", "holds no nodes"),
        ("a.json", b'{"1": {"class_type": "A"}}', "node '1' has no class_type and inputs"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0", "is (damaged|no workflow)"),
        ("a.txt", b"a cat\na dog\n", "is no workflow: expected JSON, or a picture or video"),
        ("a.png", png, "holds no workflow: .*metadata"),
        ("a.mp4", b"no video", "is no readable video"),
        ("b.mp4", video, "holds no workflow: .*metadata"),
    ],
)
def test_files_without_a_workflow(tmp_path, name, content, said):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        content(tmp_path / name)
    if name.endswith(".mp4"):
        pytest.importorskip("av")
    with pytest.raises(BadInput, match=said) as caught:
        read_workflow(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_without_pyav_a_video_is_refused_with_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(BadInput, match="needs PyAV: pip install av"):
        read_workflow(tmp_path / "a.mp4")


def test_a_renderer_draws_with_an_editors_workflow(tmp_path):
    """Checked without a server; converted by the classes of the one that draws, dead ones passed over."""
    nodes, links = [], []
    for name, made in GRAPH.items():
        inputs = made["inputs"]
        slots = []
        for key, value in inputs.items():
            if isinstance(value, list):
                links.append([len(links) + 1, int(value[0]), value[1], int(name), len(slots), "*"])
                slots.append({"name": key, "type": "*", "link": len(links)})
        values = {key: value for key, value in inputs.items() if not isinstance(value, list)}
        nodes.append({"id": int(name), "type": made["class_type"], "inputs": slots, "widgets_values": values})
    (tmp_path / "flow.json").write_text(json.dumps({"nodes": nodes, "links": links}))
    kinds = {str: "STRING", int: "INT", float: "FLOAT"}
    classes = {
        made["class_type"]: {
            "input": {
                "required": {
                    key: [kinds.get(type(value), "SOCKET"), {}] for key, value in made["inputs"].items()
                }
            }
        }
        for made in GRAPH.values()
    }
    fake = FakeComfyUI()
    fake.answers["object_info"] = (200, json.dumps(classes).encode())
    try:
        settings = RendererSettings(name=f"comfyui:{tmp_path}/flow.json@http://127.0.0.1:9,{fake.url}")
        assert check_renderer(settings).kind == "comfyui" and not fake.requests
        renderer = open_renderer(settings)
        (image,) = renderer.render([Job("a dog", 5)]).images
        assert fake.runs == [("a dog", 5)]
        assert (image.numpy() * 255).round().astype("uint8").tolist() == drawn("a dog", 5).tolist()
    finally:
        fake.stop()
    with pytest.raises(RenderFailed, match="no ComfyUI server answers"):
        open_renderer(settings)
