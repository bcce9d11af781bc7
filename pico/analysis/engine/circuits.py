"""The QK circuit: what a head looks for. (The OV circuit, what it moves, is in components.py.)"""

from collections.abc import Iterator

import torch

from pico.analysis.engine.components import K_PROJ, Q_PROJ, Key, Part, State, component
from pico.analysis.metrics.matrix import Matrix
from pico.errors import PicoError


@component
def qk_circuit(state: State) -> Iterator[Part]:
    """What a head attends to from where it is: W_Q,h^T W_K,kv(h), (d_model, d_model), rank <= head_dim (Elhage 2021).

    x_t^T (W_Q^T W_K) x_s is, but for 1/sqrt(head_dim), the score of query position t and key position s. Per head: a
    sum over heads means nothing, since each has a softmax of its own. Query head h reads key/value head
    h // (n_heads / n_kv_heads). Weights: that product. Gradients, where both q_proj and k_proj were captured: its
    first-order change along its factors' gradients, dW_Q^T W_K + W_Q^T dW_K; not the gradient with respect to it.

    With rotary embeddings the product is the score of a token with itself, at distance 0: at distance t - s a rotation
    R(t - s) of head_dim stands between the factors, W_Q^T R(t - s) W_K. Rotations keep the factors' lengths and the
    rank, not the product's singular values. Captured gradients are those of the model as it is, rotations included.
    """
    for module in (Q_PROJ, K_PROJ):
        if module not in state.weights:
            raise PicoError(
                f"component qk_circuit needs the weights of {module}, which are not there",
                where=state.where,
                mend="take qk_circuit out of analysis.components",
            )
    shape = {Q_PROJ: (state.n_heads, -1), K_PROJ: (state.n_kv_heads, -1)}
    q, k = (state.weights[module].unflatten(0, shape[module]) for module in (Q_PROJ, K_PROJ))
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


def _product(key: Key, left: torch.Tensor, right: torch.Tensor, dtype: str) -> Part:
    return key, lambda: Matrix.product(left, right, dtype=dtype)
