"""The plan's memory is what torch keeps, tensor by tensor."""

import dataclasses

import pytest
import torch

from pico.model import Decoder, DecoderConfig
from pico.plan.resources import activation_bytes, training_memory

PLAIN = DecoderConfig(32, 2, 61, 24, 4, 2, 56)


def kept_by_autograd(model: Decoder, ids: torch.Tensor, bf16: bool) -> int:
    """Bytes of all storages that the forward pass saves, but for weights, their bf16 copies, and tables."""
    apart = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), model.rotary)}
    shapes = {tuple(parameter.shape) for parameter in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        matrix = tensor.dtype == torch.bfloat16 and tensor.dim() == 2
        copy = matrix and {tuple(tensor.shape), tuple(tensor.T.shape)} & shapes
        if tensor.untyped_storage().data_ptr() not in apart and not copy:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model.hidden(ids)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {}, {"n_layers": 5, "attention_n_kv_heads": 4}, {"qk_norm": True}, {"norm": "layernorm", "qk_norm": True},
        {"activation": "relu"}, {"activation": "gelu"}, {"positions": "none"}, {"positions": "learned"},
        {"tied_embeddings": True},
    ],
)  # fmt: skip
def test_activations_are_what_autograd_saves(change, bf16):
    config = dataclasses.replace(PLAIN, **change)
    model = Decoder(config)
    ids = torch.randint(0, 61, (3, 10))
    expected = kept_by_autograd(model, ids, bf16)
    assert activation_bytes(config, 3, 10, bf16=bf16, cuda=False) == expected


def test_weights_gradients_and_moments_are_those_of_a_real_update():
    model = Decoder(PLAIN)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model.loss(torch.zeros(2, 8, dtype=torch.int64), torch.zeros(2, 8, dtype=torch.int64)).backward()
    optimizer.step()
    memory = training_memory(PLAIN, micro_batch=2, seq_len=8, bf16=False, cuda=False)
    assert memory.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert memory.gradients == sum(parameter.grad.nbytes for parameter in model.parameters())
    moments = [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.dim()]
    assert memory.optimizer == sum(tensor.nbytes for tensor in moments)
    assert memory.total == sum(vars(memory).values())


def test_what_grows_and_what_is_dealt_out():
    def of(**change):
        return training_memory(PLAIN, **{"micro_batch": 4, "seq_len": 16, "bf16": True, "cuda": True, **change})

    one, two = of(micro_batch=4), of(micro_batch=8)
    assert two.activations == 2 * one.activations
    assert two.fixed == one.fixed
    assert of(shards=8).optimizer * 8 == one.optimizer
    assert of(noise_batch=4).capture == one.weights  # the mean's gradients, besides those of a small batch
    assert of(noise_batch=8).capture == 2 * one.weights  # and those of one more micro-batch
    assert of(bf16=False).copies == 0 < one.copies
