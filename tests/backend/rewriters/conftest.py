"""A tiny random Qwen2 with the embedded rewriter's tokenizer: real classes, no training."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)  # spinning threads cost more than these models


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    from reprise.backend.lab.weights.rewriter import untrained

    where = tmp_path_factory.mktemp("rewriter") / "tiny"
    untrained(where)
    return where


@pytest.fixture(scope="session")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
