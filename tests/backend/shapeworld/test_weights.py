"""What is committed: each model with its card, safetensors alone, and not too much of it."""

from reprise.backend.core.model_files import EMBEDDED_WEIGHTS

MOST = 66e6  # bytes; docs/decisions/the-size-of-the-weights.md says why


def test_every_model_has_a_card():
    models = [folder for folder in EMBEDDED_WEIGHTS.iterdir() if folder.is_dir()]
    assert len(models) >= 14
    assert not [folder.name for folder in models if not (folder / "README.md").is_file()]


def test_weights_are_safetensors_and_stay_small():
    files = [file for file in EMBEDDED_WEIGHTS.rglob("*") if file.is_file()]
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    assert 0 < sum(file.stat().st_size for file in files) < MOST
