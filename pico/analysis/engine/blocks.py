"""Components larger than one module: the attention and MLP blocks, the residual stream, the embeddings."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from pico.analysis.engine.components import (
    K_PROJ,
    O_PROJ,
    Q_PROJ,
    V_PROJ,
    Key,
    Part,
    State,
    component,
    needed_weight,
    tensor_part,
)
from pico.analysis.metrics.matrix import Matrix
from pico.errors import PicoError

EMBEDDING, POSITIONS, UNEMBEDDING = "embedding_proj", "position_proj", "de_embedding_proj"
MLP_OUT = "swiglu.w_2"
LAYERS = "learning_dynamics.layers"


@component
def attention(state: State) -> Iterator[Part]:
    """Yields the attention block as one tensor a kind of data.

    Activations: what it adds to the residual stream, (rows, d_model): the output of `attention`, or of
    `attention.o_proj`, which is the same. Weights: its four matrices, each with d_model as columns, one below the
    other: W_Q, W_K, W_V, W_O^T. Gradients: the same, where all four modules were captured.
    """
    yield from _block(state, "attention", ("attention", O_PROJ), (Q_PROJ, K_PROJ, V_PROJ), O_PROJ)


@component
def mlp(state: State) -> Iterator[Part]:
    """Yields the MLP as one tensor a kind of data.

    Activations: what it adds to the residual stream, (rows, d_model): the output of `swiglu`, or of `swiglu.w_2`, which
    is the same. Weights: its three matrices, each with d_model as columns, one below the other: W_0, W_1, W_2^T.
    Gradients: the same, where all three modules were captured.
    """
    yield from _block(state, "mlp", ("swiglu", MLP_OUT), ("swiglu.w_0", "swiglu.w_1"), MLP_OUT)


def _block(state: State, name: str, outputs: tuple[str, ...], reads: tuple[str, ...], writes: str) -> Iterator[Part]:
    """Yields a block's output, and its matrices stacked along the residual stream, which `reads` take from."""
    modules = (*reads, writes)
    if all(module in state.weights for module in modules):
        yield _stack(Key(name, "weights", None, None, None), state.weights, reads, writes)
    for split, activations in state.activations.items():
        captured = [module for module in outputs if module in activations]
        if not captured:
            raise _missing(state, name, f"the output of the {name} block", [outputs[-1]])
        yield tensor_part(Key(name, "activations", split, None, None), activations[captured[0]])
    for split, gradients in state.gradients.items():
        if all(module in gradients for module in modules):
            yield _stack(Key(name, "gradients", split, None, None), gradients, reads, writes)


def _stack(key: Key, tensors: Mapping[str, Tensor], reads: tuple[str, ...], writes: str) -> Part:
    return key, lambda: Matrix.of(torch.cat([*(tensors[module] for module in reads), tensors[writes].T]))


@component
def residual(state: State) -> Iterator[Part]:
    """Yields the residual stream after the layer, (rows, d_model): activations only.

    The layer's own output where it was captured. Otherwise, the stream being a sum, the output of `embedding_proj`, the
    vector of the position where positions are learned, and what every attention and MLP block up to this one added, in
    float64.
    """
    for split, activations in state.activations.items():
        key = Key("residual", "activations", split, None, None)
        if "" in activations:
            yield tensor_part(key, activations[""])
        else:
            yield key, _stream(state, split)


def _stream(state: State, split: str) -> Callable[[], Matrix]:
    """Returns what makes the sum. Raises PicoError naming the terms that are not there, now and not then."""
    assert state.checkpoint is not None, "a residual stream is read from a checkpoint"
    checkpoint = state.checkpoint
    found = checkpoint.dynamics(split, "activations")
    terms, lacking = [EMBEDDING], set[str]()
    for layer in range(state.layer + 1):
        for whole, last in (("attention", O_PROJ), ("swiglu", MLP_OUT)):
            names = [f"layers.{layer}.{module}" for module in (whole, last)]
            present = [name for name in names if name in found]
            terms += present[:1]
            if not present:
                lacking.add(last)
    if EMBEDDING not in found:
        lacking.add(EMBEDDING)
    if lacking:
        raise _missing(state, "residual", "the residual stream", sorted(lacking))

    def make() -> Matrix:
        total = found[EMBEDDING].double()
        if checkpoint.config.get("positions") == "learned":  # of each row, ordered by sample, then position
            at = json.loads(checkpoint.dynamics_metadata(split, "activations")["positions"])
            total = total + checkpoint.model(POSITIONS)[f"{POSITIONS}.weight"].double()[at].repeat(
                len(total) // len(at), 1
            )
        for term in terms[1:]:
            total = total + found[term].double()
        matrix = Matrix.of(total)
        matrix.dtype = str(found[EMBEDDING].dtype).removeprefix("torch.")  # the data's, not that of the sum
        return matrix

    return make


@partial(component, of_model=True)
def embedding(state: State) -> Iterator[Part]:
    """Yields the input embedding, (vocabulary, d_model); and its gradients and outputs, where they were captured."""
    yield from _whole_module(state, "embedding", EMBEDDING)


@partial(component, of_model=True)
def unembedding(state: State) -> Iterator[Part]:
    """Yields the output matrix, (vocabulary, d_model), whose rows give logits; its gradients where captured."""
    yield from _whole_module(state, "unembedding", UNEMBEDDING)


def _whole_module(state: State, name: str, module: str) -> Iterator[Part]:
    yield tensor_part(Key(name, "weights", None, None, None), needed_weight(state, name, module))
    for data_type, states in (("activations", state.activations), ("gradients", state.gradients)):
        for split, tensors in states.items():
            if module in tensors:
                yield tensor_part(Key(name, data_type, split, None, None), tensors[module])


def _missing(state: State, name: str, what: str, modules: list[str]) -> PicoError:
    return PicoError(
        f"component {name} needs {what}, which was not captured",
        where=state.where,
        mend=f"add {', '.join(modules)} to {LAYERS} and train again, or take {name} out of analysis.components",
    )
