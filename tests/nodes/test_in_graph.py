"""Pruning inside ComfyUI's own samplers, and the embedded weights in ComfyUI's own classes."""

import pytest

pytestmark = pytest.mark.comfyui
# A pruned batch is another shape, and matrix kernels round another way: a few 1e-6 in float32, where one
# level of a picture is 4e-3.
ROUNDING = 1e-4


def test_survivors_and_winners_equal_unpruned_runs_with_every_sampler(in_comfyui):
    table = in_comfyui("inside.py", "samplers")
    refused = {name: row["refused"] for name, row in table.items() if "refused" in row}
    assert set(refused) == {"dpm_adaptive"} and "whole batch" in refused["dpm_adaptive"]
    for name, row in table.items():
        if name not in refused:
            assert row["pruned"] >= 2 and row["rows"] < 0.6, (name, row)
            assert row["survivors"] <= ROUNDING and row["winner"] <= ROUNDING, (name, row)


def test_image_to_image_inpainting_and_chunks_equal_unpruned_runs(in_comfyui):
    for name, row in in_comfyui("inside.py", "settings").items():
        assert row["pruned"] >= 2, (name, row)
        assert row["survivors"] <= ROUNDING and row["winner"] <= ROUNDING, (name, row)


def test_a_vae_of_another_model_is_refused(in_comfyui):
    assert "connect the model's own VAE" in in_comfyui("inside.py", "refusals")["vae"]


def test_comfyui_draws_what_diffusers_draws_from_the_embedded_weights(in_comfyui):
    pytest.importorskip("diffusers")
    found = in_comfyui("inside.py", "embedded", needs="diffusers")
    assert found["t5"] <= 1e-4 and found["clip"] <= 1e-4 and found["image"] <= 1e-3, found
