"""Which files of a model say how it computes."""

from see_lightning.models.digest import weights_of


def test_files_that_nothing_is_loaded_from_are_no_weights():
    files = {
        "config.json": "a",
        "model.safetensors": "b",
        "training_args.bin": "c",
        "pytorch_model.bin": "d",
        "README.md": "e",
    }
    assert weights_of(files) == {"config.json": "a", "model.safetensors": "b"}
    old = {"config.json": "a", "pytorch_model-00001-of-00002.bin": "b", "optimizer.bin": "c", "modeling_x.py": "d"}
    assert set(weights_of(old)) == {"config.json", "pytorch_model-00001-of-00002.bin", "modeling_x.py"}
