"""Checkpoints are whole, deterministic, and damage to them is recognised and named."""

import os

import pytest
import torch

from pico import checkpoint as ck
from pico.errors import PicoError


def write(run, step=3, optimizer=True):
    generator = torch.Generator().manual_seed(step)
    tensors = {"b.weight": torch.randn(4, 3, generator=generator), "a.weight": torch.randn(2, generator=generator)}
    return ck.write_checkpoint(
        run / "checkpoints" / ck.step_name(step),
        model=tensors,
        config={"d_model": 4},
        trainer={"step": step},
        optimizer={"a.weight.step": torch.tensor(3.0)} if optimizer else None,
        dynamics={"train_activations": {"layers.0": tensors["b.weight"].T}},
    )


def test_a_round_trip_keeps_everything(tmp_path):
    written = write(tmp_path)
    (found,) = ck.checkpoints(tmp_path)
    assert found == written
    assert found.step == 3
    assert found.trainer == {"step": 3}
    assert found.config == {"d_model": 4}
    assert found.model()["b.weight"].shape == (4, 3)
    assert torch.equal(found.dynamics("train", "activations")["layers.0"], found.model()["b.weight"].T)
    ck.verify(found.folder)


def test_equal_contents_give_equal_bytes(tmp_path):
    first, second = write(tmp_path / "1"), write(tmp_path / "2")
    for path in first.folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (second.folder / path.relative_to(first.folder)).read_bytes()


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "no manifest"])
def test_damage_is_named(damage, tmp_path):
    folder = write(tmp_path).folder
    file = folder / "model.safetensors"
    if damage == "truncate":
        os.truncate(file, file.stat().st_size - 4)
    elif damage == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "delete":
        file.unlink()
    else:
        (folder / ck.MANIFEST).unlink()
    with pytest.raises(PicoError, match="manifest" if damage == "no manifest" else "model.safetensors"):
        ck.verify(folder)


def test_a_checkpoint_without_manifest_is_not_listed(tmp_path):
    (write(tmp_path, 1).folder / ck.MANIFEST).unlink()
    write(tmp_path, 2)
    assert [found.step for found in ck.checkpoints(tmp_path)] == [2]


def test_dropping_the_optimizer_leaves_a_valid_checkpoint(tmp_path):
    found = write(tmp_path)
    ck.drop_optimizer(found)
    ck.drop_optimizer(found)
    ck.verify(found.folder)
    with pytest.raises(PicoError, match=r"optimizer\.safetensors does not exist"):
        found.optimizer()


def test_a_torn_tensor_file_is_named(tmp_path):
    found = write(tmp_path)
    (found.folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(PicoError, match=r"model\.safetensors cannot be read"):
        found.model()
