"""The parameters of a decoder, and the arithmetic of training it.

A product of an (m, k) and a (k, n) matrix is 2 m k n FLOPs; the backward pass has two products for each one of the
forward pass. Not counted: norms, softmax, rotary turns, the optimiser, and anything that is computed twice. What
machines can do is in pico/watch/hardware.py.
"""

import functools
from dataclasses import dataclass, fields

from pico.model.decoder import Decoder, DecoderConfig


@dataclass(frozen=True)
class ParameterCounts:
    """The parameters of a decoder by part; `total` equals what the model itself has."""

    embedding: int
    """Vectors of tokens, and of positions where these are learned."""
    attention: int
    mlp: int
    norms: int
    unembedding: int
    """0 where it is the embedding's matrix."""

    @property
    def embeddings(self) -> int:
        """Input and output embedding together."""
        return self.embedding + self.unembedding

    @property
    def total(self) -> int:
        """All of them."""
        return self.embeddings + self.attention + self.mlp + self.norms


@functools.cache
def count_parameters(config: DecoderConfig) -> ParameterCounts:
    """Returns the parameters of `Decoder(config)`, counted on the meta device, where they take no memory."""
    counts = dict.fromkeys((field.name for field in fields(ParameterCounts)), 0)
    for name, parameter in Decoder(config, seed=None).named_parameters():  # a tied matrix is named once
        if name.endswith("norm.weight"):
            part = "norms"
        elif name.startswith("layers."):
            part = "attention" if ".attention." in name else "mlp"
        else:
            part = "unembedding" if name.startswith("de_embedding") else "embedding"
        counts[part] += parameter.numel()
    return ParameterCounts(**counts)


def training_flops_per_token(config: DecoderConfig, seq_len: int) -> int:
    """Returns the FLOPs of both passes per token of a row of `seq_len`: 6 N + 12 n_layers d_model seq_len.

    N is the number of parameters that are multiplied with: all matrices but input embeddings, which are looked up.
    The second term is attention's scores and mixing over all seq_len positions, as PaLM counts; that causal kernels
    skip half of them is not deducted, so that figures compare with published ones.
    """
    counts = count_parameters(config)
    multiplied = counts.attention + counts.mlp + config.vocab_size * config.d_model
    return 6 * multiplied + 12 * config.n_layers * config.d_model * seq_len
