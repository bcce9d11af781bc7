"""What a component is made of, against the same thing written out with dense matrices."""

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_runs import LAYERS, write_run

from pico.analysis.components import Key, ov_circuit, read_state, simple
from pico.analysis.matrix import Matrix
from pico.checkpoint import Checkpoint, write_checkpoint
from pico.errors import PicoError

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_run(tmp_path_factory.mktemp("run"), steps=(3,), n_layers=11)[0]


def matrices(parts) -> dict[Key, Matrix]:
    return {key: make() for key, make in parts}


def test_simple_is_each_captured_tensor(checkpoint: Checkpoint) -> None:
    found = matrices(simple(read_state(checkpoint, 1)))
    weights, activations = checkpoint.model(), checkpoint.dynamics("val", "activations")
    assert len(found) == len(LAYERS) * (1 + 2 + 2)
    for module in LAYERS:
        name = f"layers.1.{module}"
        assert np.array_equal(found["simple", "weights", None, None, module].values, weights[f"{name}.weight"].double())
        assert np.array_equal(found["simple", "activations", "val", None, module].values, activations[name].double())
        gradient = checkpoint.dynamics("train", "gradients")[f"{name}.weight"]
        assert np.array_equal(found["simple", "gradients", "train", None, module].values, gradient.double())


def test_ov_circuit_is_output_times_value(checkpoint: Checkpoint) -> None:
    state = read_state(checkpoint, 0)
    found = matrices(ov_circuit(state))
    w_v = state.weights["attention.v_proj"].double().numpy().reshape(KV_HEADS, HEAD_DIM, -1)
    w_o = state.weights["attention.o_proj"].double().numpy().reshape(-1, HEADS, HEAD_DIM)
    values = state.activations["val"]["attention.v_proj"].double().numpy().reshape(-1, KV_HEADS, HEAD_DIM)
    d_v = state.gradients["val"]["attention.v_proj"].double().numpy().reshape(KV_HEADS, HEAD_DIM, -1)
    d_o = state.gradients["val"]["attention.o_proj"].double().numpy().reshape(-1, HEADS, HEAD_DIM)
    kv = [0, 0, 1, 1]
    expected = {
        ("weights", None): [w_o[:, h] @ w_v[kv[h]] for h in range(HEADS)],
        ("activations", "val"): [values[:, kv[h]] @ w_o[:, h].T for h in range(HEADS)],
        ("gradients", "val"): [d_o[:, h] @ w_v[kv[h]] + w_o[:, h] @ d_v[kv[h]] for h in range(HEADS)],
    }
    ranks = {"weights": HEAD_DIM, "activations": HEAD_DIM, "gradients": 2 * HEAD_DIM}
    for (data_type, split), products in expected.items():
        for head, product in enumerate(products):
            matrix = found["ov_circuit", data_type, split, head, None]
            assert np.allclose(matrix.values, product, rtol=1e-12, atol=1e-15)
            assert matrix.largest_rank == ranks[data_type]
            spectrum = np.linalg.svd(product, compute_uv=False)[: ranks[data_type]]
            assert np.allclose(np.ldexp(matrix.spectrum, matrix.exponent), spectrum, rtol=1e-6)
            assert matrix.dtype == "float32"
        joined = found["ov_circuit", data_type, split, None, None]
        assert np.allclose(joined.values, sum(products), rtol=1e-12, atol=1e-14)
        assert joined.dtype == "float32"


def test_gradients_are_the_first_order_change_of_the_product(checkpoint: Checkpoint) -> None:
    state = read_state(checkpoint, 0)
    change = matrices(ov_circuit(state))["ov_circuit", "gradients", "train", 3, None].values
    step = 1e-6

    def moved(sign: float) -> np.ndarray:
        weights = {
            name: state.weights[name].double() + sign * step * state.gradients["train"][name].double()
            for name in ("attention.v_proj", "attention.o_proj")
        }
        other = read_state(checkpoint, 0)
        other.weights.update(weights)
        return matrices(ov_circuit(other))["ov_circuit", "weights", None, 3, None].values

    assert np.allclose((moved(1) - moved(-1)) / (2 * step), change, rtol=1e-5, atol=1e-9)


def test_weights_alone_are_read_where_modules_are_given(checkpoint: Checkpoint) -> None:
    state = read_state(checkpoint, 10, ("swiglu.w_2",))
    assert [key.data_type for key, _ in simple(state)] == ["weights"]
    assert {key.data_type for key, _ in ov_circuit(state)} == {"weights"}


def test_ov_circuit_says_what_it_misses(tmp_path: Path) -> None:
    weights = {
        "layers.0.attention.v_proj.weight": torch.zeros(4, 4),
        "layers.0.attention.o_proj.weight": torch.zeros(4, 4),
    }
    captured = {f"{split}_{kind}": {} for split in ("train", "val") for kind in ("activations", "gradients")}
    config = {"n_layers": 1, "attention_n_heads": 1, "attention_n_kv_heads": 1}
    bare = write_checkpoint(tmp_path / "step_00000000", model=weights, config=config, trainer={}, dynamics=captured)
    with pytest.raises(PicoError, match=r"activations of attention\.v_proj(.|\n)*learning_dynamics\.layers"):
        list(ov_circuit(read_state(bare, 0)))
