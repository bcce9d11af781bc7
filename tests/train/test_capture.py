"""Learning dynamics: the right layers, rows and gradients, and no trace left on the model."""

import pytest
import torch
import torch.nn.functional as F

from pico.errors import PicoError
from pico.model import Decoder, DecoderConfig
from pico.train.capture import activation_metadata, capture, captured_positions, chosen_layers, noise_metadata

MODEL = Decoder(DecoderConfig(16, 2, 31, 12, 2, 1, 32), seed=4)
ROWS = torch.randint(0, 31, (5, 13), generator=torch.Generator().manual_seed(0))


def captured(micro_batch_size: int = 5, positions: int = 4, noise_batch: int | None = None):
    return capture(MODEL, ROWS, suffixes=["attention.v_proj", "w_2"], positions=positions,
                   micro_batch_size=micro_batch_size, noise_batch=noise_batch)  # fmt: skip


def test_positions_are_even_and_end_with_the_last():
    assert captured_positions(256, 16) == [15 + 16 * i for i in range(16)]
    assert captured_positions(12, 1) == [11]
    assert captured_positions(4, 9) == [0, 1, 2, 3]
    assert captured_positions(10, 3) == [2, 5, 9]


def test_layers_are_chosen_by_whole_suffix():
    assert list(chosen_layers(MODEL, ["attention.v_proj"])) == [f"layers.{i}.attention.v_proj" for i in range(2)]
    for wrong in ("v_pro", "proj", "swiglu", "attention.v_projs"):
        with pytest.raises(PicoError, match=f"no layer is named '{wrong}'"):
            chosen_layers(MODEL, [wrong])


def test_activations_are_ordered_by_sample_then_position():
    activations = captured(micro_batch_size=2).activations
    seen = {}
    layer = MODEL.layers[1].attention.v_proj
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.update(v=output.detach()))
    MODEL(ROWS[:, :-1])
    handle.remove()
    expected = seen["v"][:, [2, 5, 8, 11]].reshape(5 * 4, -1)
    torch.testing.assert_close(activations["layers.1.attention.v_proj"], expected)
    assert activation_metadata(ROWS, 4) == {"positions": "[2, 5, 8, 11]", "samples": "5"}


@pytest.mark.parametrize("micro_batch_size", [1, 2, 5])
def test_gradients_are_those_of_the_mean_loss_for_every_micro_batch(micro_batch_size):
    gradients = captured(micro_batch_size).gradients
    names = list(gradients)
    weights = [MODEL.get_parameter(name) for name in names]
    loss = F.cross_entropy(MODEL(ROWS[:, :-1]).flatten(0, 1), ROWS[:, 1:].flatten())
    for name, expected in zip(names, torch.autograd.grad(loss, weights), strict=True):
        torch.testing.assert_close(gradients[name], expected, atol=1e-8, rtol=1e-4)
    assert names == [f"layers.{i}.{name}.weight" for i in range(2) for name in ("attention.v_proj", "swiglu.w_2")]


def test_norms_are_those_of_whole_small_batches_and_of_all_rows():
    found = captured(micro_batch_size=1, noise_batch=2)
    weights = dict(MODEL.named_parameters())
    assert list(found.norms) == list(weights)

    def squares(rows):
        loss = F.cross_entropy(MODEL(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        return [float(one.square().sum()) for one in torch.autograd.grad(loss, list(weights.values()))]

    expected = torch.tensor([squares(ROWS[:2]), squares(ROWS[2:4]), squares(ROWS)], dtype=torch.float64).T
    torch.testing.assert_close(torch.stack(list(found.norms.values())), expected, rtol=1e-4, atol=1e-12)
    assert noise_metadata(ROWS, 2) == {"small": "24", "large": "60"}
    plain = captured()
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, atol=1e-8, rtol=1e-4)
    for name, activation in plain.activations.items():
        torch.testing.assert_close(found.activations[name], activation)


def test_capturing_leaves_no_trace():
    MODEL.zero_grad()
    MODEL.layers[0].swiglu.w_2.weight.grad = kept = torch.ones_like(MODEL.layers[0].swiglu.w_2.weight)
    before, state = {k: v.clone() for k, v in MODEL.state_dict().items()}, torch.get_rng_state()
    captured(noise_batch=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in MODEL.state_dict().items())
    assert MODEL.layers[0].swiglu.w_2.weight.grad is kept
    assert (kept == 1).all()
    assert all(not module._forward_hooks for module in MODEL.modules())
    MODEL.zero_grad()
