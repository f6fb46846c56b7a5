"""What merging an adapter keeps of it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.rewriters.reprompt import load_checkpoint
from reprise.backend.training.common.lora import merged
from reprise.backend.training.common.settings import LoraSettings
from reprise.backend.training.sft.config import SftConfig
from reprise.backend.training.sft.train import train

from ..conftest import ROWS


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_a_small_change_is_not_rounded_away(base, taught):
    """Each weight moves by a ten-thousandth of its size, which bfloat16 cannot say."""
    from peft import get_peft_model

    model, _, _ = load_checkpoint(str(taught), "cpu", str(base).removeprefix("torch."))
    adapted = get_peft_model(model, LoraSettings(r=2, alpha=2).adapter())
    before, change = {}, {}
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            torch.nn.init.normal_(a, std=1e-2)
            torch.nn.init.normal_(b, std=1e-2)
            before[name] = module.base_layer.weight.detach().float().clone()
            change[name] = b.detach() @ a.detach()
            assert a.dtype == torch.float32 and change[name].abs().max() > 0
    whole = merged(adapted)
    found = dict(whole.named_modules())
    for name, delta in change.items():
        weight = found[name.removeprefix("base_model.model.")].weight
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, before[name] + delta, rtol=0, atol=1e-7)
    assert {weight.dtype for weight in merged(whole, "float16").parameters()} == {torch.float16}


@pytest.mark.parametrize(("asked", "stored"), [("same", torch.float32), ("bfloat16", torch.bfloat16)])
def test_an_adapter_on_bfloat16_is_exported_in_float32(asked, stored, taught, tmp_path):
    (tmp_path / "sft.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    config = SftConfig(
        model=str(taught),
        data=tmp_path / "sft.jsonl",
        system="Rewrite.",
        max_steps=1,
        batch_size=4,
        learning_rate=1e-5,
        max_length=96,
        max_new_tokens=32,
        device="cpu",
        dtype="bfloat16",
        export_dtype=asked,
        gradient_checkpointing=False,
        scheduler="constant_with_warmup",
        warmup_ratio=0.0,
        lora={"r": 2},
    )
    final = train(config, tmp_path / "run", log=lambda line: None)
    found, base = (load_file(folder / "model.safetensors") for folder in (final, taught))
    assert {weight.dtype for weight in found.values()} == {stored}
    names = [name for name in found if name.endswith("_proj.weight")]
    rounded = {name: base[name].bfloat16().float() for name in names}
    moved = [(found[name].float() - rounded[name]).ne(0).float().mean().item() for name in names]
    if asked == "same":
        assert all(share > 0.5 for share in moved), "what was learned is there, however little"
    else:
        assert sum(moved) / len(moved) < 0.3, "the test can tell"
