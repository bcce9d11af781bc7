"""Checkpoints in the published layout load with or without their prefix, and go through our own layout unchanged."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pico.capture.published import load_decoder as load_published
from pico.checkpoint import write_checkpoint
from pico.model import Decoder, DecoderConfig, load_decoder

CONFIG = DecoderConfig(16, 2, 31, 12, 2, 1, 32)
PUBLISHED = {
    "model_type": "pico_decoder", "d_model": 16, "n_layers": 2, "vocab_size": 31, "batch_size": 1024, "max_seq_len": 12,
    "attention_n_heads": 2, "attention_n_kv_heads": 1, "activation_hidden_dim": 32, "norm_eps": 1e-6, "dropout": 0.1,
    "position_emb_theta": 10000.0, "torch_dtype": "float32",
}  # fmt: skip
IDS = torch.arange(24).view(2, 12)


@pytest.mark.parametrize("prefix", ["", "pico_decoder."])
def test_the_published_layout_loads_and_round_trips(prefix, tmp_path):
    original = Decoder(CONFIG, seed=9)
    weights = {f"{prefix}{name}": tensor.clone() for name, tensor in original.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    loaded = load_published(tmp_path)
    assert loaded.config == CONFIG
    assert torch.equal(loaded(IDS), original(IDS))
    ours = write_checkpoint(tmp_path / "step_00000000", model=loaded.state_dict(), config=loaded.config.to_dict(),
                            trainer={"step": 0})  # fmt: skip
    again = load_file(ours.folder / "model.safetensors")
    assert {f"{prefix}{name}" for name in again} == set(weights)
    assert all(torch.equal(tensor, weights[f"{prefix}{name}"]) for name, tensor in again.items())
    assert torch.equal(load_decoder(ours)(IDS), original(IDS))
