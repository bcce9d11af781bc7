"""The whole base model: a Llama-style decoder with the parameter names of the published pico-decoder checkpoints.

    token ids (batch, seq)
      -> embedding                                             (batch, seq, d_model)
      -> n_layers times:  x + attention(norm(x)),  then  x + swiglu(norm(x))
      -> final norm -> logits over the vocabulary              (batch, seq, vocab_size)

Read it from the bottom up: `Decoder` is made of `Block`s, a block of `Attention` and `SwiGLU`. No biases anywhere;
input and output embeddings are separate. Sources: Llama (arXiv 2302.13971), grouped queries (2305.13245), rotary
embeddings (2104.09864), SwiGLU (2002.05202), Pico (2509.16413). The options of `DecoderConfig` (pico/config/model.py)
depart from it, for studies of what each part does; without them the model is the published one, to the bit.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pico.config import DecoderConfig
from pico.errors import PicoError
from pico.model.cross_entropy import linear_cross_entropy
from pico.model.linear import Linear

if TYPE_CHECKING:
    from pico.checkpoint import Checkpoint

INIT_STD = 0.02
"""Standard deviation of fresh weights, as GPT-2's."""


def rotary_table(config: DecoderConfig) -> Tensor:
    """Returns cos and sin of position * frequency for each position and pair: (max_seq_len, head_dim / 2, 2) float32.

    Pair j turns by theta^(-2j / head_dim) radians a position: the first pairs tell neighbours apart, the last ones
    only distant positions. The score of a query and a key then depends on their distance alone.
    """
    pairs = torch.arange(0, config.head_dim, 2)
    frequencies = config.position_emb_theta ** (-pairs.double() / config.head_dim)
    angles = torch.outer(torch.arange(config.max_seq_len).double(), frequencies)
    return torch.stack((angles.cos(), angles.sin()), -1).float()  # angles in float64: exact at any length


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turns the interleaved pairs (2j, 2j + 1) of each head by their position's angle.

    x: (batch, seq, heads, head_dim); table: (seq, head_dim / 2, 2), or (batch, seq, head_dim / 2, 2) where rows differ
    in their positions. Pair and table entry are read as complex numbers, so that the turn is one product: 4 times
    faster on a CPU than four real products, and the same number.
    """
    table = table.unsqueeze(-3)  # the same for all heads
    if torch.compiler.is_compiling():  # the compiler makes one kernel of the four products, and none of a complex one
        (a, b), (cos, sin) = x.float().unflatten(-1, (-1, 2)).unbind(-1), table.unbind(-1)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(table)).flatten(-2).type_as(x)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467), computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).type_as(x)


class LayerNorm(RMSNorm):
    """(x - mean(x)) / std(x) * weight (arXiv 1607.06450); without a bias, as all of the model."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight.float(), None, self.eps).type_as(x)


NORMS: dict[str, type[RMSNorm]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


class Past(NamedTuple):
    """One layer's part of a `Cache` in one forward pass: where new keys and values go, and what may be seen."""

    keys: Tensor
    """(batch, slots, kv heads, head_dim); slot t holds position t."""
    values: Tensor
    slots: Tensor
    """(batch, seq), where each new token goes."""
    mask: Tensor | None
    """(batch, 1, seq, end): which of the first `end` slots each new token sees; None where there is nothing earlier."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values, (batch, seq, kv heads, head_dim). Returns those that the mask is about."""
        rows = torch.arange(len(k), device=k.device)[:, None]
        self.keys[rows, self.slots], self.values[rows, self.slots] = k.type_as(self.keys), v.type_as(self.values)
        if self.mask is None:
            return k, v
        end = self.mask.shape[-1]
        return self.keys[:, :end], self.values[:, :end]


class Attention(nn.Module):
    """Causal self-attention with grouped queries."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_width = config.attention_n_kv_heads * config.head_dim
        self.q_proj = Linear(config.d_model, config.d_model)
        self.k_proj = Linear(config.d_model, kv_width)
        self.v_proj = Linear(config.d_model, kv_width)
        self.o_proj = Linear(config.d_model, config.d_model)
        if config.qk_norm:
            self.q_norm = NORMS[config.norm](config.head_dim, config.norm_eps)
            self.k_norm = NORMS[config.norm](config.head_dim, config.norm_eps)
        self.rotary, self.qk_norm = config.positions == "rotary", config.qk_norm

    def project(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values as attention uses them, each (batch, seq, its heads, head_dim)."""
        q, k, v = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.q_proj, self.k_proj, self.v_proj))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return (rotate(q, table), rotate(k, table), v) if self.rotary else (q, k, v)

    def forward(self, x: Tensor, table: Tensor, past: Past | None = None) -> Tensor:
        """x: (batch, seq, d_model); table: see `rotate`."""
        q, k, v = self.project(x, table)
        mask = None
        if past is not None:
            (k, v), mask = past.extend(k, v), past.mask
        # (batch, heads, seq, head_dim). `is_causal` lets torch choose a kernel that never holds the seq x seq scores;
        # an explicit mask would not. `enable_gqa` shares each key/value head among its query heads without copies.
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if q.is_cuda and q.dtype == torch.float32:  # its only kernel without scores knows nothing of groups
            k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], dim=1) for one in (k, v))
        grouped = k.shape[1] < q.shape[1]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    """The MLP: w_2(silu(w_0 x) * w_1 x). w_0 opens or shuts each hidden unit, w_1 says what passes."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.w_0 = Linear(config.d_model, config.activation_hidden_dim)
        self.w_1 = Linear(config.d_model, config.activation_hidden_dim)
        self.w_2 = Linear(config.activation_hidden_dim, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(self.activation(self.w_0(x)) * self.w_1(x))


class Block(nn.Module):
    """One layer: attention, then the MLP, each reading a normalised copy and adding to the residual stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = NORMS[config.norm](config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.swiglu_norm = NORMS[config.norm](config.d_model, config.norm_eps)
        self.swiglu = SwiGLU(config)

    def forward(self, x: Tensor, table: Tensor, past: Past | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table, past)
        return x + self.swiglu(self.swiglu_norm(x))


class Cache:
    """The keys and values of what each row has read, so that a further token costs one position instead of all."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.lengths = torch.zeros(rows, dtype=torch.int64)
        """(rows,) positions that each row holds; on the CPU, where it is read without waiting for a device."""
        self.capacity = capacity
        """The most positions that a row can hold."""
        self.layers: list[tuple[Tensor, Tensor]] = []
        """Keys and values of each layer, (rows, capacity + 1, kv heads, head_dim); padding goes to the last slot."""

    def select(self, rows: Tensor, capacity: int | None = None) -> "Cache":
        """Returns a copy of some rows, in the order given, repeats included. rows: (n,) int64 on the CPU."""
        chosen = Cache(len(rows), capacity or self.capacity)
        chosen.lengths = self.lengths[rows]
        used = int(chosen.lengths.max()) if len(rows) else 0

        def copy(old: Tensor) -> Tensor:
            new = old.new_zeros((len(rows), chosen.capacity + 1, *old.shape[2:]))
            new[:, :used] = old[rows.to(old.device), :used]
            return new

        chosen.layers = [(copy(keys), copy(values)) for keys, values in self.layers]
        return chosen

    def take(self, model: "Decoder", seq: int, counts: Tensor | None) -> tuple[Tensor, list[Past]]:
        """Makes room for `seq` more tokens a row; see `Decoder.hidden`. Returns their positions, and each layer's part.

        Raises PicoError where there is no room.
        """
        config, weight = model.config, model.embedding_proj.weight
        ends = self.lengths + (seq if counts is None else counts)
        end = int(ends.max())
        if end > min(self.capacity, config.max_seq_len):
            raise PicoError(
                f"a row would hold {end} tokens; this model has max_seq_len = {config.max_seq_len}, and the cache has "
                f"room for {self.capacity}"
            )
        if not self.layers:
            shape = (len(ends), self.capacity + 1, config.attention_n_kv_heads, config.head_dim)
            self.layers = [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(config.n_layers)]
        positions = self.lengths[:, None] + torch.arange(seq)
        slots = positions.where(positions < ends[:, None], self.capacity).to(weight.device)
        positions = positions.clamp(max=config.max_seq_len - 1).to(weight.device)
        mask = None
        if self.lengths.any():  # each token sees the slots up to its own position
            mask = (torch.arange(end, device=weight.device) <= positions[..., None])[:, None]
        self.lengths = ends
        return positions, [Past(keys, values, slots, mask) for keys, values in self.layers]


class Decoder(nn.Module):
    """The model. `Decoder(config)(input_ids)` gives float32 logits; `loss` never holds them all.

    A fresh model's weights are a pure function of (config, seed). With seed None they are left on the meta device:
    names and shapes without memory.
    """

    rotary: Tensor

    def __init__(self, config: DecoderConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        # On the meta device first, so that nn.Linear does not fill weights that `initialise` fills anyway, and torch's
        # global random state stays as it was.
        with torch.device("meta"):
            self.embedding_proj = nn.Embedding(config.vocab_size, config.d_model)
            if config.positions == "learned":
                self.position_proj = nn.Embedding(config.max_seq_len, config.d_model)
            self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
            self.output_norm = NORMS[config.norm](config.d_model, config.norm_eps)
            self.de_embedding_proj = Linear(config.d_model, config.vocab_size)
        if seed is not None:
            self.to_empty(device="cpu")
        if config.tied_embeddings:
            self.de_embedding_proj.weight = self.embedding_proj.weight
        # A buffer of this instance: it moves with the model, but is neither a parameter nor part of the state dict.
        self.register_buffer("rotary", rotary_table(config), persistent=False)
        if seed is not None:
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fills all weights: norms with 1, matrices from a normal of standard deviation 0.02.

        The 2 n_layers projections that add to the residual stream (o_proj, w_2) are smaller by sqrt(2 n_layers), so
        that the stream's variance at the start does not grow with depth (GPT-2). Drawn on the CPU in float32, in the
        order of the parameters, so that every device and world size starts from the same bits.
        """
        generator = torch.Generator().manual_seed(seed)
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                std = residual_std if name.endswith(("attention.o_proj.weight", "swiglu.w_2.weight")) else INIT_STD
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))

    def embed(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Returns the first layer's input, (batch, seq, d_model). positions: (batch, seq); None counts from 0."""
        x = self.embedding_proj(input_ids)
        if self.config.positions == "learned":
            x = x + self.position_proj(torch.arange(x.shape[1], device=x.device) if positions is None else positions)
        return x

    def hidden(self, input_ids: Tensor, cache: Cache | None = None, counts: Tensor | None = None) -> Tensor:
        """Returns the normalised output of the last layer, from which logits are computed: (batch, seq, d_model).

        With a cache, rows go on from what the cache holds of them, and are added to it. There, rows may differ in
        length: counts, (batch,) int64 on the CPU, says how many ids of each are real; those after them are padding,
        whose outputs mean nothing. Raises PicoError for more positions than the model or the cache has.
        """
        seq = input_ids.shape[1]
        if cache is None:
            if seq > self.config.max_seq_len:
                raise PicoError(
                    f"the input has {seq} tokens a row; this model has max_seq_len = {self.config.max_seq_len}"
                )
            x, table = self.embed(input_ids), self.rotary[:seq]
            for layer in self.layers:
                x = layer(x, table)
        else:
            positions, pasts = cache.take(self, seq, counts)
            x, table = self.embed(input_ids, positions), self.rotary[positions]
            for layer, past in zip(self.layers, pasts, strict=True):
                x = layer(x, table, past)
        return self.output_norm(x)

    def forward(self, input_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Returns next-token logits, (batch, seq, vocab_size) float32. input_ids: (batch, seq) int64."""
        return self.de_embedding_proj(self.hidden(input_ids, cache)).float()

    def loss(self, input_ids: Tensor, targets: Tensor, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
        """Returns the cross-entropy of the targets in nats, as forward and F.cross_entropy do, in less memory.

        input_ids, targets: (batch, seq) int64. Returns a float32 scalar, or (batch, seq) for "none", which carries
        no gradient.
        """
        losses = linear_cross_entropy(
            self.hidden(input_ids).flatten(0, 1), self.de_embedding_proj.weight, targets.flatten(), reduction
        )
        return losses.view(targets.shape) if reduction == "none" else losses


def load_decoder(checkpoint: "Checkpoint") -> Decoder:
    """Returns the model of a checkpoint, in eval mode. Raises PicoError where weights and configuration do not fit."""
    model = Decoder(DecoderConfig.from_dict(checkpoint.config))
    load_weights(model, checkpoint.model(), where=str(checkpoint.folder))
    return model.eval()


def load_weights(model: nn.Module, weights: dict[str, Tensor], *, where: str) -> None:
    """Copies `weights` into the model. Raises PicoError naming the first parameter that does not fit."""
    own = dict(model.named_parameters(remove_duplicate=False))  # tied embeddings are in the file under both names
    for name in sorted(own.keys() | weights.keys()):
        ours = tuple(own[name].shape) if name in own else "none"
        theirs = tuple(weights[name].shape) if name in weights else "none"
        if ours != theirs:
            raise PicoError(
                f"parameter {name} has shape {theirs} in the file, {ours} in the model",
                where=where,
                mend="config.json and model.safetensors are of different models",
            )
    model.load_state_dict(weights)
