"""The whole base model: a Llama-style decoder with the parameter names of the published pico-decoder checkpoints.

    token ids (batch, seq)
      -> embedding                                             (batch, seq, d_model)
      -> n_layers times:  x + attention(norm(x)),  then  x + swiglu(norm(x))
      -> final norm -> logits over the vocabulary              (batch, seq, vocab_size)

Read it from the bottom up: `Decoder` is made of `Block`s, a block of `Attention` and `SwiGLU`. No biases anywhere;
input and output embeddings are separate. Sources: Llama (arXiv 2302.13971), grouped queries (2305.13245), rotary
embeddings (2104.09864), SwiGLU (2002.05202), Pico (2509.16413).
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pico.errors import PicoError
from pico.model.cross_entropy import linear_cross_entropy

if TYPE_CHECKING:
    from pico.checkpoint import Checkpoint

INIT_STD = 0.02


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder. Raises PicoError where the parts do not fit."""

    d_model: int
    """Width of the residual stream; the only thing, with activation_hidden_dim, that differs within a suite."""
    n_layers: int
    vocab_size: int
    max_seq_len: int
    """Longest input; rotary tables are made for this many positions."""
    attention_n_heads: int
    attention_n_kv_heads: int
    """Heads of keys and values; each serves attention_n_heads / attention_n_kv_heads query heads."""
    activation_hidden_dim: int
    """Inner width of the MLP."""
    norm_eps: float = 1e-6
    position_emb_theta: float = 10000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise PicoError(f"DecoderConfig.{field.name} = {getattr(self, field.name)} is not positive")
        if self.d_model % (2 * self.attention_n_heads):
            raise PicoError(
                f"d_model = {self.d_model} is not a multiple of 2 x attention_n_heads = {2 * self.attention_n_heads}",
                mend="every head needs an even width, because rotary embeddings rotate pairs: change one of the two",
            )
        if self.attention_n_heads % self.attention_n_kv_heads:
            raise PicoError(
                f"attention_n_heads = {self.attention_n_heads} is not a multiple of "
                f"attention_n_kv_heads = {self.attention_n_kv_heads}",
                mend="each key/value head serves the same number of query heads: change one of the two",
            )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.attention_n_heads

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DecoderConfig":
        """The inverse of `to_dict`. Raises PicoError naming unknown or missing keys."""
        known = {field.name for field in fields(cls)}
        if wrong := sorted(known.symmetric_difference(values)):
            raise PicoError(
                f"a decoder configuration has unknown or missing keys: {', '.join(wrong)}",
                mend=f"it must have exactly: {', '.join(sorted(known))}",
            )
        return cls(**values)


def rotary_table(config: DecoderConfig) -> Tensor:
    """cos and sin of position * frequency for every position and pair: (max_seq_len, head_dim / 2, 2) float32.

    Pair j turns by theta^(-2j / head_dim) radians a position: the first pairs tell neighbours apart, the last ones
    only distant positions. The score of a query and a key then depends on their distance alone.
    """
    pairs = torch.arange(0, config.head_dim, 2)
    frequencies = config.position_emb_theta ** (-pairs.double() / config.head_dim)
    angles = torch.outer(torch.arange(config.max_seq_len).double(), frequencies)
    return torch.stack((angles.cos(), angles.sin()), -1).float()  # angles in float64: exact at any length


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turns the interleaved pairs (2j, 2j + 1) of each head by their position's angle.

    x: (batch, seq, heads, head_dim); table: (seq, head_dim / 2, 2). Pair and table entry are read as complex numbers,
    so that the turn is one product: 4 times faster on a CPU than four real products, and the same number.
    """
    if torch.compiler.is_compiling():  # the compiler makes one kernel of the four products, and none of a complex one
        (a, b), (cos, sin) = x.float().unflatten(-1, (-1, 2)).unbind(-1), table[:, None].unbind(-1)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turns = torch.view_as_complex(table)[:, None]
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467), computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).type_as(x)


class Attention(nn.Module):
    """Causal self-attention with grouped queries."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_width = config.attention_n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = nn.Linear(config.d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(config.d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """x: (batch, seq, d_model); table: see `rotate`."""
        heads = (-1, self.head_dim)
        q = rotate(self.q_proj(x).unflatten(-1, heads), table)
        k = rotate(self.k_proj(x).unflatten(-1, heads), table)
        v = self.v_proj(x).unflatten(-1, heads)
        # (batch, heads, seq, head_dim). `is_causal` lets torch choose a kernel that never holds the seq x seq scores;
        # an explicit mask would not. `enable_gqa` shares each key/value head among its query heads without copies.
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    """The MLP: w_2(silu(w_0 x) * w_1 x). w_0 opens or shuts each hidden unit, w_1 says what passes."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.w_0 = nn.Linear(config.d_model, config.activation_hidden_dim, bias=False)
        self.w_1 = nn.Linear(config.d_model, config.activation_hidden_dim, bias=False)
        self.w_2 = nn.Linear(config.activation_hidden_dim, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.silu(self.w_0(x)) * self.w_1(x))


class Block(nn.Module):
    """One layer: attention, then the MLP, each reading a normalised copy and adding to the residual stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.swiglu_norm = RMSNorm(config.d_model, config.norm_eps)
        self.swiglu = SwiGLU(config)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table)
        return x + self.swiglu(self.swiglu_norm(x))


class Decoder(nn.Module):
    """The model. `Decoder(config)(input_ids)` gives float32 logits; `loss` never holds them all.

    A fresh model's weights are a pure function of (config, seed).
    """

    rotary: Tensor

    def __init__(self, config: DecoderConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        # On the meta device first, so that nn.Linear does not fill weights that `initialise` fills anyway, and torch's
        # global random state stays as it was.
        with torch.device("meta"):
            self.embedding_proj = nn.Embedding(config.vocab_size, config.d_model)
            self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
            self.output_norm = RMSNorm(config.d_model, config.norm_eps)
            self.de_embedding_proj = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.to_empty(device="cpu")
        # A buffer of this instance: it moves with the model, but is neither a parameter nor part of the state dict.
        self.register_buffer("rotary", rotary_table(config), persistent=False)
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

    def hidden(self, input_ids: Tensor) -> Tensor:
        """The normalised output of the last layer, from which logits are read: (batch, seq, d_model)."""
        seq = input_ids.shape[1]
        if seq > self.config.max_seq_len:
            raise PicoError(f"the input has {seq} tokens a row; this model has max_seq_len = {self.config.max_seq_len}")
        x = self.embedding_proj(input_ids)
        for layer in self.layers:
            x = layer(x, self.rotary[:seq])
        return self.output_norm(x)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Next-token logits. input_ids: (batch, seq) int64; returns (batch, seq, vocab_size) float32."""
        return self.de_embedding_proj(self.hidden(input_ids)).float()

    def loss(self, input_ids: Tensor, targets: Tensor, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
        """Cross-entropy of the targets in nats: what forward and F.cross_entropy give, in a fraction of the memory.

        input_ids, targets: (batch, seq) int64. Returns a float32 scalar, or (batch, seq) for "none", which carries
        no gradient.
        """
        losses = linear_cross_entropy(
            self.hidden(input_ids).flatten(0, 1), self.de_embedding_proj.weight, targets.flatten(), reduction
        )
        return losses.view(targets.shape) if reduction == "none" else losses


def load_decoder(checkpoint: "Checkpoint") -> Decoder:
    """The model of a checkpoint, in eval mode. Raises PicoError where weights and configuration do not fit."""
    model = Decoder(DecoderConfig.from_dict(checkpoint.config))
    load_weights(model, checkpoint.model(), where=str(checkpoint.folder))
    return model.eval()


def load_weights(model: nn.Module, weights: dict[str, Tensor], *, where: str) -> None:
    """Copies `weights` into the model. Raises PicoError naming the first parameter that does not fit."""
    own = dict(model.named_parameters())
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
