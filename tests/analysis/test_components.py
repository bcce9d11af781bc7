"""Components, against the same thing written out with dense matrices."""

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_runs import LAYERS, write_run

from pico.analysis.engine.blocks import attention, embedding, mlp, residual, unembedding
from pico.analysis.engine.choices import choose_layers
from pico.analysis.engine.components import MODEL, Key, ov_circuit, qk_circuit, read_state, simple
from pico.analysis.metrics.matrix import Matrix
from pico.checkpoint import Checkpoint, write_checkpoint
from pico.errors import PicoError
from pico.model import Decoder, DecoderConfig
from pico.train.capture import activation_metadata, capture, captured_positions

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


# Beyond two modules ---------------------------------------------------------------------------------------------------

ALL = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two layers with every module captured, and the embedding; the second split lacks the queries' gradients."""
    generator = torch.Generator().manual_seed(1)
    shapes = {f"attention.{name}": (16 if name in ("q_proj", "o_proj") else 8, 16) for name in ALL}
    shapes |= {"swiglu.w_0": (64, 16), "swiglu.w_1": (64, 16), "swiglu.w_2": (16, 64)}
    names = {f"layers.{layer}.{name}": shape for layer in (0, 1) for name, shape in shapes.items()}
    names |= {"embedding_proj": (32, 16), "de_embedding_proj": (32, 16)}

    def tensors(ending: str, rows: int | None = None) -> dict[str, torch.Tensor]:
        widths = {"embedding_proj": 16} if rows else {}
        return {
            f"{name}{ending}": torch.randn((rows, widths.get(name, shape[0])) if rows else shape, generator=generator)
            for name, shape in names.items()
        }

    dynamics = {f"{split}_activations": tensors("", 12) for split in ("train", "val")}
    dynamics |= {f"{split}_gradients": tensors(".weight") for split in ("train", "val")}
    del dynamics["val_gradients"]["layers.1.attention.q_proj.weight"]
    return write_checkpoint(
        tmp_path_factory.mktemp("whole") / "step_00000001",
        model=tensors(".weight"),
        config={"n_layers": 2, "attention_n_heads": HEADS, "attention_n_kv_heads": KV_HEADS},
        trainer={"step": 1, "tokens": 1},
        dynamics=dynamics,
    )


def test_qk_circuit_scores_pairs_of_positions(whole: Checkpoint) -> None:
    state = read_state(whole, 1)
    found = matrices(qk_circuit(state))
    rows = torch.randn(5, 16, dtype=torch.float64)
    q = (rows @ state.weights["attention.q_proj"].double().T).unflatten(1, (HEADS, HEAD_DIM))
    k = (rows @ state.weights["attention.k_proj"].double().T).unflatten(1, (KV_HEADS, HEAD_DIM))
    for head in range(HEADS):
        circuit = found["qk_circuit", "weights", None, head, None]
        assert np.allclose(rows @ circuit.values @ rows.T, q[:, head] @ k[:, head // 2].T, rtol=1e-9)
        assert circuit.largest_rank == HEAD_DIM
    assert {key.split for key in found if key.data_type == "gradients"} == {"train"}
    assert not any(key.head is None for key in found)
    step = 1e-6
    moved = []
    for sign in (1, -1):
        other = read_state(whole, 1)
        for name in ("attention.q_proj", "attention.k_proj"):
            other.weights[name] = state.weights[name].double() + sign * step * state.gradients["train"][name].double()
        moved.append(matrices(qk_circuit(other))["qk_circuit", "weights", None, 3, None].values)
    change = found["qk_circuit", "gradients", "train", 3, None].values
    assert np.allclose((moved[0] - moved[1]) / (2 * step), change, rtol=1e-5, atol=1e-6)


def test_blocks_are_their_modules_together(whole: Checkpoint) -> None:
    state = read_state(whole, 1)
    for component, modules, last in (
        (attention, [f"attention.{name}" for name in ALL], "attention.o_proj"),
        (mlp, ["swiglu.w_0", "swiglu.w_1", "swiglu.w_2"], "swiglu.w_2"),
    ):
        found = matrices(component(state))
        name = component.__name__
        for data_type, split, tensors in (
            ("weights", None, state.weights),
            ("gradients", "train", state.gradients["train"]),
        ):
            energy = sum(float(tensors[module].double().norm() ** 2) for module in modules)
            assert np.linalg.norm(found[name, data_type, split, None, None].values) ** 2 == pytest.approx(energy)
        output = state.activations["val"][last]
        assert np.array_equal(found[name, "activations", "val", None, None].values, output.double())
    assert ("attention", "gradients", "val", None, None) not in matrices(attention(state))
    assert ("mlp", "gradients", "val", None, None) in matrices(mlp(state))


def test_the_residual_stream_is_the_sum_of_what_was_added(whole: Checkpoint, tmp_path: Path) -> None:
    captured = whole.dynamics("val", "activations")
    total = captured["embedding_proj"].double()
    for layer in (0, 1):
        total = total + sum(captured[f"layers.{layer}.{name}"].double() for name in ("attention.o_proj", "swiglu.w_2"))
        stream = matrices(residual(read_state(whole, layer)))["residual", "activations", "val", None, None]
        assert np.allclose(stream.values, total, rtol=1e-12)
        assert stream.dtype == "float32"
    state = read_state(whole, 1)
    output = torch.randn(12, 16)
    for tensors in state.activations.values():
        tensors[""] = output  # a whole layer's output, where a capture gives it
    assert np.array_equal(
        matrices(residual(state))["residual", "activations", "val", None, None].values, output.double()
    )


def test_the_residual_stream_has_the_vectors_of_learned_positions(tmp_path: Path) -> None:
    decoder = Decoder(DecoderConfig(16, 2, 40, 12, 2, 1, 32, positions="learned"), seed=3)
    rows = torch.randint(0, 40, (5, 9), generator=torch.Generator().manual_seed(0))
    modules = ("embedding_proj", "attention.o_proj", "swiglu.w_2")
    captured = capture(decoder, rows, suffixes=modules, positions=3, micro_batch_size=2)
    checkpoint = write_checkpoint(
        tmp_path / "checkpoints" / "step_00000000", model=decoder.state_dict(), config=decoder.config.to_dict(),
        trainer={"tokens": 0}, dynamics_metadata={"val_activations": activation_metadata(rows, 3)},
        dynamics={f"{split}_{kind}": getattr(captured, kind)
                  for split in ("train", "val") for kind in ("activations", "gradients")},
    )  # fmt: skip
    parts = {key: make for key, make in residual(read_state(checkpoint, 1)) if key.split == "val"}
    (found,) = (make().values for make in parts.values())
    streams = []
    decoder.layers[1].register_forward_hook(lambda module, inputs, output: streams.append(output))
    with torch.no_grad():
        decoder(rows[:, :-1])
    expected = streams[0][:, captured_positions(8, 3)].flatten(0, 1)
    assert np.allclose(found, expected.double(), atol=1e-6)


def test_embeddings_belong_to_the_model(whole: Checkpoint) -> None:
    state = read_state(whole, MODEL)
    assert set(state.weights) == {"embedding_proj", "de_embedding_proj"}
    found = matrices([*embedding(state), *unembedding(state)])
    weight = whole.model()["de_embedding_proj.weight"].double()
    assert np.array_equal(found["unembedding", "weights", None, None, None].values, weight)
    assert found["embedding", "activations", "train", None, None].values.shape == (12, 16)


def test_components_name_the_setting_that_captures_what_they_miss(checkpoint: Checkpoint) -> None:
    with pytest.raises(PicoError, match=r"residual(.|\n)*embedding_proj to learning_dynamics\.layers"):
        list(residual(read_state(checkpoint, 0)))
    with pytest.raises(PicoError, match=r"q_proj(.|\n)*analysis\.components"):
        list(qk_circuit(read_state(checkpoint, 0)))
    state = read_state(checkpoint, 0)
    del state.activations["val"]["swiglu.w_2"]
    with pytest.raises(PicoError, match=r"swiglu\.w_2 to learning_dynamics\.layers"):
        list(mlp(state))


def test_layers_are_chosen_by_list_range_or_all() -> None:
    assert choose_layers("all", 3) == [0, 1, 2]
    assert choose_layers([2, 0, 2], 3) == [0, 2]
    assert choose_layers("0-2, 5", 6) == [0, 1, 2, 5]
    for wrong, message in (
        ("0-6", "layer 6 of a model with 6"),
        ("2-1", "backwards"),
        ("x", "understood"),
        ([], "no layer"),
    ):
        with pytest.raises(PicoError, match=message):
            choose_layers(wrong, 6)
