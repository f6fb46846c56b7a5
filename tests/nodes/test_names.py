"""The loader nodes take the lines of their drop-downs, and names with an address as every place does. Models
of other folders, and such as would be downloaded, are refused: a workflow may be a stranger's."""

import json

import pytest

from ..backend.rewards.vlm import tiny_vlm
from ..backend.rewriters.prip.tiny_prip import save
from ..fake_endpoint import MODEL
from ..reward_server import Brightness, clean, serving  # noqa: F401  clean: a fixture

pytestmark = pytest.mark.comfyui
AWAY = "http://127.0.0.1:9"


def test_loader_nodes_take_labels_and_names(in_comfyui, tmp_path, endpoint, monkeypatch):
    monkeypatch.delenv("REPRISE_MODELS", raising=False)
    models = tmp_path / "reprise"
    save(models / "refiners" / "mine")
    tiny_vlm.llava(models / "judges" / "seer")
    (models / "rewriters" / "lm").mkdir(parents=True)
    (models / "rewriters" / "lm" / "config.json").write_text('{"model_type": "qwen2"}')
    embedded = "shapeworld (embedded)"
    lm, mine, seer = (str(models / path) for path in ("rewriters/lm", "refiners/mine", "judges/seer"))
    gone = "put its folder there, or choose another one in the drop-down"
    expected = {
        "rewriter": {
            embedded: ["reprompt", "", ""],
            "lm": ["reprompt", lm, ""],
            "reprompt:lm": ["reprompt", lm, ""],
            "promptist:lm": ["promptist", lm, ""],
            "none": ["none", "", ""],
            "prip": ["prip", "", ""],
            f"chat:{MODEL}@{AWAY}/v1": ["chat", MODEL, f"{AWAY}/v1"],
            lm: gone,
            "owner/model": gone,
            "prip:mine": gone,
            "lmm": gone,
            "chta:m@http://127.0.0.1:9": "did you mean 'chat'",
        },
        "refiner": {
            embedded: ["prip", "", ""],
            "mine": ["prip", mine, ""],
            "prip:mine": ["prip", mine, ""],
            "promptist:mine": ["promptist", mine, ""],
            mine: gone,
            "owner/model": gone,
            "template": gone,
            f"chat:{MODEL}@{AWAY}/v1": "is no refiner; name it in Load Rewriter",
        },
        "judge": {
            "shapeworld": ["shapeworld", "", ""],
            "image-reward": ["image-reward", "", ""],
            "vlm: seer#checklist": ["vlm", seer, ""],
            "vlm:seer": ["vlm", seer, ""],
            "vlm: embedded#match": ["vlm", "embedded", ""],
            f"vlm:m@{AWAY}/v1#match": ["vlm", "m", f"{AWAY}/v1"],
            f"remote:image-reward@{AWAY}": ["remote", "image-reward", AWAY],
            f"vlm:{seer}": gone,
            "vlm:owner/model": gone,
            "vlm: seer#chekclist": "did you mean 'checklist'",
            "imge-reward": "did you mean 'image-reward'",
            "length": "reads rewrites, not pictures",
            "remote:image-reward": "expected remote:NAME@URL",
        },
    }
    with serving(Brightness()) as server:
        asked = {
            "names": {role: list(names) for role, names in expected.items()},
            "remote": f"remote:brightness@{server.url}",
            "chat": f"chat:{MODEL}@{endpoint.url}",
        }
        (tmp_path / "names.json").write_text(json.dumps(asked))
        found = in_comfyui("inside_names.py", str(tmp_path), str(tmp_path / "names.json"))
    for role, names in expected.items():
        for name, wanted in names.items():
            said = found["names"][f"{role} {name}"]
            assert wanted in said if isinstance(wanted, str) else said == wanted, (role, name, said)
    assert found["scores"] == [0.0] and found["patchers"] == [None, False]
    assert found["rewrite"] == "a grey cat on a red sofa" and len(endpoint.requests) == 1
