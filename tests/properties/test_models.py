"""Files of models that people fetch: safetensors, the settings beside them, indexes of pipelines."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from reprise.backend.cli.models import count_parameters
from reprise.backend.core.errors import CheckpointError
from reprise.backend.renderers.diffusers.checkpoints import read_index
from reprise.backend.renderers.diffusers.lora import read_lora
from reprise.backend.renderers.diffusers.weight_files import read_header, read_tensors
from reprise.backend.rewards.geneval.judge import read_normalisation
from reprise.backend.rewards.published.checkpoint import read_settings as read_published_settings
from reprise.backend.rewards.published.checkpoint import read_weights
from reprise.backend.rewards.vlm.judge import read_tuned
from reprise.backend.rewriters.prip.checkpoint import read_config, read_own_weights
from reprise.backend.rewriters.prip.rewriter import is_refiner
from reprise.backend.rewriters.reprompt import CheckpointSettings, read_settings

from .inputs import documents, mangled, refuses_clearly


class Denoiser(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList([torch.nn.Linear(4, 6)])


NAME = "transformer.transformer_blocks.0"
LORA = {
    f"{NAME}.lora_A.weight": torch.ones(2, 4),
    f"{NAME}.lora_B.weight": torch.ones(6, 2),
    f"{NAME}.alpha": torch.tensor(2.0),
}
HEADER = json.loads(save(LORA)[8 : 8 + int.from_bytes(save(LORA)[:8], "little")])


def with_header(header):
    """A safetensors file with another header before the same numbers."""
    data = save(LORA)
    return len(header).to_bytes(8, "little") + header + data[8 + int.from_bytes(data[:8], "little") :]


DTYPES = st.sampled_from(
    "F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F8_E8M0 F4 F6_E2M3 I64 I8 U8 U64 BOOL C64 X".split()
)
weights = st.one_of(
    mangled(save(LORA)),
    documents(HEADER).map(with_header),
    DTYPES.map(
        lambda dtype: with_header(
            json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 8]}}).encode()
        )
    ),
    st.integers(2**20, 2**63).map(lambda size: size.to_bytes(8, "little") + b"{}"),
)


@given(weights)
def test_weights(scratch, data):
    path = scratch / "weights.safetensors"
    path.write_bytes(data)
    refuses_clearly(count_parameters, path)
    refuses_clearly(read_weights, path)
    refuses_clearly(read_own_weights, path)
    refuses_clearly(read_lora, path, Denoiser())


QUANTIZED = {"layers": {"a": {"format": "float8_e4m3fn"}}}


@given(
    weights
    | documents(QUANTIZED).map(
        lambda data: save(LORA, {"_quantization_metadata": data.decode("utf-8", "replace")})
    )
)
def test_single_files_of_weights(scratch, data):
    path = Path(mkdtemp(dir=scratch)) / "model.safetensors"
    path.write_bytes(data)
    refuses_clearly(read_header, path)
    refuses_clearly(read_tensors, path)


def quantised():
    gguf = pytest.importorskip("gguf")
    with TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(f"{folder}/m.gguf", "flux")
        writer.add_tensor("a.weight", torch.ones(4, 32).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Path(folder, "m.gguf").read_bytes()


@given(st.data())
def test_gguf_files(scratch, data):
    path = Path(mkdtemp(dir=scratch)) / "model.gguf"
    path.write_bytes(quantised())
    assert read_header(path).shapes == {"a.weight": (4, 32)}
    path = path.with_name("changed.gguf")
    path.write_bytes(data.draw(mangled(quantised())))
    refuses_clearly(read_header, path)


def pickled():
    import io

    file = io.BytesIO()
    torch.save({"state_dict": LORA}, file)
    return file.getvalue()


@given(mangled(pickled()))
def test_pickled_weights(scratch, data):
    (scratch / "weights.pt").write_bytes(data)
    refuses_clearly(read_weights, scratch / "weights.pt")


SETTINGS = {
    "model_type": "prip",
    "queries": 8,
    "width": 16,
    "window": 64,
    "before": "b",
    "after": "a",
    "system": "s",
    "temperature": 0.5,
    "questions": ["match"],
    "prompts": ["ab"],
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [1, 1, 1],
    "calibration": {"match": {"temperature": 1.0, "bias": 0.0}},
}


@given(documents(SETTINGS))
def test_settings(scratch, data):
    for name in ("config.json", "reprise.json"):
        (scratch / name).write_bytes(data)
    refuses_clearly(read_config, scratch)
    assert is_refiner(scratch) in (True, False)
    refuses_clearly(read_tuned, scratch)
    refuses_clearly(read_settings, scratch / "reprise.json", CheckpointSettings)
    refuses_clearly(read_published_settings, scratch / "config.json", "prip")
    found = refuses_clearly(read_normalisation, scratch / "config.json")
    assert found is None or len(found[0]) == len(found[1]) == 3


INDEX = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.42.1",
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "feature_extractor": [None, None],
}


@given(documents(INDEX))
def test_indexes_of_pipelines(scratch, data):
    for part in ("transformer", "tokenizer"):
        (scratch / "pipeline" / part).mkdir(parents=True, exist_ok=True)
    (scratch / "pipeline" / "tokenizer" / "vocab.json").write_text("{}")
    (scratch / "pipeline" / "model_index.json").write_bytes(data)
    refuses_clearly(read_index, scratch / "pipeline")


def test_the_valid_files_are_valid(scratch):
    """Else the tests above would only try what is refused at once."""
    path = scratch / "weights.safetensors"
    path.write_bytes(save(LORA))
    assert count_parameters(path) == 21 and read_weights(path) and read_lora(path, Denoiser())
    (scratch / "weights.pt").write_bytes(pickled())
    assert read_weights(scratch / "weights.pt").keys() == LORA.keys()
    with pytest.raises(CheckpointError, match="expected a pipeline's folder"):
        read_index(scratch / "nothing")
