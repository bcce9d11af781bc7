"""States of each architecture: what a hook sees, heads where they belong, and attention that comes out of the parts."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import CONFIGS
from torch import Tensor

from pico.capture.architectures import ARCHITECTURES, output_rows, shape_of
from pico.capture.hugging_face import States, capture_states, load_config, load_model
from pico.capture.run import MODULES
from pico.train.capture import captured_positions

ROWS = torch.randint(256, (5, 25), generator=torch.Generator().manual_seed(1))
ALL = ("attention.q_proj", "attention.k_proj", *MODULES)


def states(model: Any, **changes: Any) -> States:
    settings = {"modules": ALL, "layers": [0, 1], "positions": 24, "micro_batch_size": 2} | changes
    return capture_states(model, ARCHITECTURES[model.config.model_type], ROWS, **settings)


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    return load_model(folders[request.param], "cpu")[0]


def hooked(model: Any, name: str) -> tuple[Tensor, Tensor]:
    """Input and output of a module in a plain forward pass over all rows."""
    found = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda _, inputs, output: found.append((inputs[0], output)))
    with torch.no_grad():
        model(input_ids=ROWS[:, :-1], use_cache=False)
    handle.remove()
    return found[0][0].reshape(5, 24, -1), found[0][1].reshape(5, 24, -1)


def test_rows_are_what_a_hook_sees(model: Any) -> None:
    """v, o and the MLP's output, sample by sample and position by position; of a fused module, its values."""
    kind = model.config.model_type
    mapping = ARCHITECTURES[kind]
    found = states(model, positions=4)
    at = captured_positions(24, 4)
    for module in MODULES:
        output = hooked(model, f"{mapping.layers}.1.{mapping.modules[module]}")[1]
        if module == "attention.v_proj" and kind == "gpt_neox":  # head by head: q, k, v
            output = output.unflatten(-1, (4, 3, 8))[:, :, :, 2].flatten(2)
        elif module == "attention.v_proj" and kind == "gpt2":  # all q, all k, all v
            output = output[..., 64:]
        captured = found.activations[f"layers.1.{module}"]
        assert captured.shape[0] == 5 * 4
        assert torch.allclose(captured, output[:, at].flatten(0, 1), atol=1e-5)


def test_attention_comes_out_of_the_parts(model: Any) -> None:
    """softmax(q k^T) v, computed from the captured q, k and v, is what the model gives its output projection."""
    kind = model.config.model_type
    mapping, shape = ARCHITECTURES[kind], shape_of(model.config)
    found = states(model).activations
    q, k, v = (
        found[f"layers.1.attention.{name}_proj"].view(5, 24, -1, shape.head_dim).transpose(1, 2) for name in "qkv"
    )
    if mapping.rotary:
        q, k = (rotated(one, shape.rotary_dims) for one in (q, k))
    k, v = (one.repeat_interleave(shape.n_heads // shape.n_kv_heads, dim=1) for one in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(shape.head_dim)
    hidden = torch.ones(24, 24, dtype=torch.bool).triu(1)
    mixed = torch.softmax(scores.masked_fill(hidden, -math.inf), -1) @ v
    given = hooked(model, f"{mapping.layers}.1.{mapping.modules['attention.o_proj']}")[0]
    assert torch.allclose(mixed.transpose(1, 2).flatten(2), given, atol=2e-4)


def rotated(x: Tensor, dims: int) -> Tensor:
    """Pico's rotary embeddings: interleaved pairs, of the first `dims` coordinates of each head."""
    angles = torch.outer(torch.arange(24.0), 10000 ** (-torch.arange(0, dims, 2) / dims))
    a, b = x[..., 0:dims:2], x[..., 1:dims:2]
    turned = torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1).flatten(-2)
    return torch.cat([turned, x[..., dims:]], -1)


def test_weights_give_the_activations(model: Any) -> None:
    """Inputs times the weight is the captured output, but for the bias, the same for all rows: (out, in) it is."""
    mapping = ARCHITECTURES[model.config.model_type]
    found = states(model)
    for module in ALL:
        inputs = hooked(model, f"{mapping.layers}.0.{mapping.modules[module]}")[0].flatten(0, 1)
        bias = found.activations[f"layers.0.{module}"] - inputs @ found.weights[f"layers.0.{module}.weight"].T
        assert torch.allclose(bias, bias[:1].expand_as(bias), atol=2e-4)


def test_gradients_are_those_of_the_mean_loss(model: Any) -> None:
    """Against backward() over all rows at once, for the output of the MLP; and the model is left as it was."""
    before = {name: one.requires_grad for name, one in model.named_parameters()}
    gradients = states(model, micro_batch_size=2).gradients
    assert before == {name: one.requires_grad for name, one in model.named_parameters()}
    mapping = ARCHITECTURES[model.config.model_type]
    for module in ("swiglu.w_2", "attention.v_proj"):
        weight = model.get_submodule(f"{mapping.layers}.0.{mapping.modules[module]}").weight
        logits = model(input_ids=ROWS[:, :-1]).logits
        whole = torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), ROWS[:, 1:].flatten()), weight)[0]
        whole = whole.T if mapping.transposed else whole
        rows = output_rows(mapping, shape_of(model.config), module)
        expected = whole if rows is None else whole[rows]
        assert torch.allclose(gradients[f"layers.0.{module}.weight"], expected, atol=1e-5)


def test_the_stored_type_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(folders["llama"], "cpu")[0]
    model.half().save_pretrained(tmp_path)
    again, stored = load_model(tmp_path, "cpu")
    assert stored == torch.float16
    assert again.dtype == torch.float32
    found = states(again, dtype=stored, layers=[1])
    assert {one.dtype for one in found.weights.values()} == {torch.float16}
    assert {one.dtype for one in found.activations.values()} == {torch.float32}
    assert {name.split(".")[1] for name in found.activations} == {"1"}
    assert load_config(tmp_path).model_type == "llama"


def test_the_residual_stream_is_the_blocks_output(model: Any) -> None:
    mapping = ARCHITECTURES[model.config.model_type]
    found = states(model, modules=["residual"])
    assert found.activations.keys() == {"layers.0", "layers.1"}
    assert not found.gradients
    seen = []
    block = model.get_submodule(f"{mapping.layers}.1")
    handle = block.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=ROWS[:, :-1], use_cache=False)
    handle.remove()
    # what enters the second block is what left the first
    assert torch.allclose(found.activations["layers.0"], seen[0].flatten(0, 1), atol=1e-5)
