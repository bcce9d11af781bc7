"""Components: the matrices that are made from one layer's weights, activations and gradients for metrics to look at."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pico.analysis.engine.choices import SPLITS
from pico.analysis.metrics.matrix import Matrix
from pico.analysis.metrics.registry import nearest
from pico.checkpoint import DYNAMICS, Checkpoint
from pico.errors import PicoError

MODEL = -1
"""The "layer" of what belongs to the model and to none of its layers: the embeddings."""
Q_PROJ, K_PROJ, V_PROJ, O_PROJ = (f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj"))


@dataclass(frozen=True)
class State:
    """One layer of one checkpoint. Names are suffixes within the layer: `attention.v_proj`."""

    where: str
    """The checkpoint and the layer, for messages."""
    n_heads: int
    n_kv_heads: int
    modules: tuple[str, ...]
    """The captured modules, sorted."""
    weights: dict[str, Tensor]
    """Module -> (out, in), of all modules of the layer."""
    activations: dict[str, dict[str, Tensor]]
    """Split -> captured module -> (rows, out)."""
    gradients: dict[str, dict[str, Tensor]]
    """Split -> captured module -> (out, in), of the mean loss."""
    layer: int = 0
    checkpoint: Checkpoint | None = None
    """The checkpoint that it was read from, for components that look beyond their layer."""


class Key(NamedTuple):
    """The name of a matrix of a layer: the same key in two checkpoints means two matrices that can be compared."""

    component: str
    data_type: str
    split: str | None
    """None for weights."""
    head: int | None
    """None for all heads together, or where there are none."""
    module: str | None
    """The captured module, for components of one module."""


Part = tuple[Key, Callable[[], Matrix]]
"""A key and what makes its matrix: only one layer's matrices in turn need to be in memory."""

Parts = Callable[[State], Iterator[Part]]


@dataclass(frozen=True)
class Component:
    """A registered component."""

    name: str
    function: Parts
    of_model: bool
    """It belongs to no layer: it is given the State of layer MODEL, which other components never are."""


COMPONENTS: dict[str, Component] = {}


def component(function: Parts, *, of_model: bool = False) -> Parts:
    """Registers a function from a State to its parts, under the function's name; of_model: see Component."""
    COMPONENTS[function.__name__] = Component(function.__name__, function, of_model)
    return function


def get_component(name: str) -> Component:
    """Returns the component of that name. Raises PicoError naming the nearest one."""
    if name not in COMPONENTS:
        raise PicoError(
            f"{name!r} is not a component{nearest(name, COMPONENTS)}",
            mend=f"the components are {', '.join(COMPONENTS)}",
        )
    return COMPONENTS[name]


def read_state(checkpoint: Checkpoint, layer: int, modules: tuple[str, ...] | None = None) -> State:
    """Reads one layer, memory-mapped: everything, or, where the captured `modules` are given, the weights alone.

    Layer MODEL is what lies outside the layers. Where a whole layer's output was captured, its module is "". Raises
    PicoError for a missing or torn file.
    """
    prefix = "" if layer == MODEL else f"layers.{layer}."
    config = checkpoint.config
    # Of anybody else's model there is one batch, val. Where there is none, the file that is missing will be named.
    splits = [
        one for one in SPLITS if (checkpoint.folder / DYNAMICS / f"{one}_activations.safetensors").exists()
    ] or SPLITS

    def captured(kind: str, ending: str) -> dict[str, dict[str, Tensor]]:
        if modules is not None:
            return {}
        found = {split: checkpoint.dynamics(split, kind, prefix.rstrip(".")) for split in splits}
        return {split: _suffixes(tensors, prefix, ending) for split, tensors in found.items()}

    activations = captured("activations", "")
    return State(
        where=f"{checkpoint.folder}, layer {layer}",
        n_heads=config["attention_n_heads"],
        n_kv_heads=config["attention_n_kv_heads"],
        modules=modules if modules is not None else tuple(activations[splits[0]]),
        weights=_suffixes(checkpoint.model(prefix), prefix, ".weight"),
        activations=activations,
        gradients=captured("gradients", ".weight"),
        layer=layer,
        checkpoint=checkpoint,
    )


def _suffixes(tensors: dict[str, Tensor], prefix: str, ending: str) -> dict[str, Tensor]:
    """Returns the tensors under the names that they have within the layer, in order of name; the layer itself is ""."""

    def inside(name: str) -> bool:
        return f"{name}.".startswith(prefix) and (prefix != "" or not name.startswith("layers."))

    return {
        f"{name}.".removeprefix(prefix).removesuffix(".").removesuffix(ending): tensors[name]
        for name in sorted(tensors)
        if inside(name)
    }


def tensor_part(key: Key, tensor: Tensor) -> Part:
    """Returns the part that is the tensor as it is."""
    return key, lambda: Matrix.of(tensor)


def needed_weight(state: State, component: str, module: str) -> Tensor:
    """Returns a module's weight. Raises PicoError naming the component where it is not there."""
    if module not in state.weights:
        raise PicoError(
            f"component {component} needs the weights of {module}, which are not there",
            where=state.where,
            mend=f"take {component} out of analysis.components",
        )
    return state.weights[module]


@component
def simple(state: State) -> Iterator[Part]:
    """Yields each captured module's own weight, output and gradient."""

    for module in state.modules:
        if module in state.weights:  # a whole block, where one was captured, has none of its own
            yield tensor_part(Key("simple", "weights", None, None, module), state.weights[module])
    for data_type, states in (("activations", state.activations), ("gradients", state.gradients)):
        for split, tensors in states.items():
            for module, tensor in tensors.items():
                yield tensor_part(Key("simple", data_type, split, None, module), tensor)


@component
def ov_circuit(state: State) -> Iterator[Part]:
    """Yields what a head writes for what it reads: W_O,h W_V,kv(h), (d_model, d_model), rank <= head_dim.

    Source: Elhage et al. 2021. Weights: that product. Activations: the head's value rows through W_O,h, (rows,
    d_model): what it would write if it attended to that row alone. Gradients: the product's first-order change along
    its factors' gradients, dW_O W_V + W_O dW_V; not the gradient with respect to the product. Per head, and (head None)
    summed over heads. Heads are slices of head_dim of v_proj's rows and of o_proj's columns; query head h reads
    key/value head h // (n_heads / n_kv_heads).
    """
    v_weight, o_weight = _needed(state.weights, "weights", state), _needed(state.weights, "weights", state, O_PROJ)
    dtype = str(v_weight.dtype).removeprefix("torch.")  # sums over heads are float64; the data are not
    for head in (*range(state.n_heads), None):
        w_v, w_o = _values(v_weight, head, state), _outputs(o_weight, head, state)
        yield _product(Key("ov_circuit", "weights", None, head, None), w_o, w_v, dtype)
        for split, activations in state.activations.items():
            rows = _values(_needed(activations, "activations", state).T, head, state).T
            yield _product(Key("ov_circuit", "activations", split, head, None), rows, w_o.T, dtype)
        for split, gradients in state.gradients.items():
            d_v = _values(_needed(gradients, "gradients", state), head, state)
            d_o = _outputs(_needed(gradients, "gradients", state, O_PROJ), head, state)
            key = Key("ov_circuit", "gradients", split, head, None)
            yield _product(key, torch.cat([d_o, w_o], dim=1), torch.cat([w_v, d_v], dim=0), dtype)


def _product(key: Key, left: Tensor, right: Tensor, dtype: str) -> Part:
    return key, lambda: Matrix.product(left, right, dtype=dtype)


def _values(tensor: Tensor, head: int | None, state: State) -> Tensor:
    """Returns the rows of v_proj's (n_kv_heads * head_dim, ...) tensor that query head `head` reads; None: all."""
    if head is None:
        return tensor
    return tensor.unflatten(0, (state.n_kv_heads, -1))[head // (state.n_heads // state.n_kv_heads)]


def _outputs(tensor: Tensor, head: int | None, state: State) -> Tensor:
    """Returns the columns of o_proj's (d_model, n_heads * head_dim) tensor for `head`: (d_model, head_dim).

    For None, summed over the heads that share a key/value head, (d_model, n_kv_heads * head_dim): times what `_values`
    gives for None, that is the sum of the heads' products.
    """
    heads = tensor.unflatten(1, (state.n_heads, -1))
    if head is not None:
        return heads[:, head]
    return heads.unflatten(1, (state.n_kv_heads, -1)).double().sum(dim=2).flatten(1)


def _needed(tensors: dict[str, Tensor], kind: str, state: State, module: str = V_PROJ) -> Tensor:
    if module not in tensors:
        raise PicoError(
            f"component ov_circuit needs the {kind} of {module}, which are not there",
            where=state.where,
            mend=f"add {module} to learning_dynamics.layers, or take ov_circuit out of analysis.components",
        )
    return tensors[module]


@component
def qk_circuit(state: State) -> Iterator[Part]:
    """Yields what a head attends to: W_Q,h^T W_K,kv(h), (d_model, d_model), rank <= head_dim (Elhage et al. 2021).

    x_t^T (W_Q^T W_K) x_s is, but for 1/sqrt(head_dim), the score of query position t and key position s. Per head: a
    sum over heads means nothing, since each has a softmax of its own. Query head h reads key/value head
    h // (n_heads / n_kv_heads). Weights: that product. Gradients, where both q_proj and k_proj were captured: its
    first-order change along its factors' gradients, dW_Q^T W_K + W_Q^T dW_K; not the gradient with respect to it.

    With rotary embeddings the product is the score of a token with itself, at distance 0: at distance t - s a rotation
    R(t - s) of head_dim stands between the factors, W_Q^T R(t - s) W_K. Rotations keep the factors' lengths and the
    rank, not the product's singular values. Captured gradients are those of the model as it is, rotations included.
    """
    shape = {Q_PROJ: (state.n_heads, -1), K_PROJ: (state.n_kv_heads, -1)}
    q, k = (needed_weight(state, "qk_circuit", module).unflatten(0, shape[module]) for module in (Q_PROJ, K_PROJ))
    dtype = str(q.dtype).removeprefix("torch.")
    moved = {split: found for split, found in state.gradients.items() if Q_PROJ in found and K_PROJ in found}
    for head in range(state.n_heads):
        shared = head // (state.n_heads // state.n_kv_heads)
        yield _product(Key("qk_circuit", "weights", None, head, None), q[head].T, k[shared], dtype)
        for split, gradients in moved.items():
            d_q = gradients[Q_PROJ].unflatten(0, shape[Q_PROJ])[head]
            d_k = gradients[K_PROJ].unflatten(0, shape[K_PROJ])[shared]
            left, right = torch.cat([d_q.T, q[head].T], dim=1), torch.cat([k[shared], d_k], dim=0)
            yield _product(Key("qk_circuit", "gradients", split, head, None), left, right, dtype)
