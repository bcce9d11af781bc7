"""The interface of a model to metrics of behaviour: log-probabilities, and where it can, attention and gradients.

`Scorer` is all that most metrics need, so that any callable can be measured. `as_scorer` wraps our Decoder, and takes
anything that is a Scorer already as it is: pico.capture.hugging_face has one of Hugging Face causal LMs.
"""

import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pico.errors import PicoError
from pico.model import Decoder
from pico.model.decoder import Attention, Block

LOGITS_AT_ONCE = 1 << 20
"""Elements of a (positions, vocabulary) chunk: 4 MB of float32, whatever the number of rows asked for."""


@runtime_checkable
class Scorer(Protocol):
    """A model that gives the log-probability of every next token."""

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""

    @property
    def context_length(self) -> int:
        """Longest row of input ids."""

    def log_probabilities(self, input_ids: Tensor) -> Tensor:
        """Computes log p(next token | tokens so far): (batch, seq) int64 -> (batch, seq, vocab_size) float32, nats."""


@runtime_checkable
class AttentionScorer(Scorer, Protocol):
    """A Scorer whose attention can be looked at."""

    def attention_logits(self, input_ids: Tensor) -> Iterator[Tensor]:
        """Yields each layer's scaled scores before the softmax: (batch, heads, seq, seq) float32, -inf where masked.

        The softmax over the last axis is the attention. One layer at a time, so that only one is in memory.
        """


@runtime_checkable
class DifferentiableScorer(Scorer, Protocol):
    """A Scorer whose loss has derivatives with respect to its parameters."""

    def parameters(self) -> tuple[Tensor, ...]:
        """Returns the trainable parameters, in a fixed order, each once."""

    def logits(self, input_ids: Tensor) -> Tensor:
        """Computes (batch, seq) int64 -> (batch, seq, vocab_size), twice differentiable under the `math` kernel."""


class DecoderScorer:
    """Our Decoder as a Scorer with attention and derivatives. The model is put in eval mode and otherwise untouched."""

    def __init__(self, model: Decoder) -> None:
        self.model = model.eval()

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def context_length(self) -> int:
        return self.model.config.max_seq_len

    def log_probabilities(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids.to(self._device)).log_softmax(-1)

    def log_probability_chunks(self, input_ids: Tensor) -> Iterator[Tensor]:
        """Yields the same, (positions, vocab_size) a time in row-major order: the logits never exist as a whole."""
        hidden = self.model.hidden(input_ids.to(self._device)).flatten(0, 1)
        for part in hidden.split(max(1, LOGITS_AT_ONCE // self.vocab_size)):
            yield self.model.de_embedding_proj(part).float().log_softmax(-1)

    @torch.no_grad()
    def attention_logits(self, input_ids: Tensor) -> Iterator[Tensor]:
        x = self.model.embed(input_ids.to(self._device))
        table = self.model.rotary[: input_ids.shape[1]]
        for layer in self.model.layers:
            assert isinstance(layer, Block)
            yield causal_scores(layer.attention, layer.attention_norm(x), table)
            x = layer(x, table)

    def parameters(self) -> tuple[Tensor, ...]:
        return tuple(self.model.parameters())

    def logits(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids.to(self._device))

    @property
    def _device(self) -> torch.device:
        return self.model.embedding_proj.weight.device


def causal_scores(attention: Attention, x: Tensor, table: Tensor) -> Tensor:
    """Computes q.k / sqrt(head_dim), which our fused kernel never shows: (batch, heads, seq, seq), float32.

    x: (batch, seq, d_model), the normalised input; table: see pico.model.decoder.rotate. -inf where the key is later.
    """
    q, k = (part.transpose(1, 2).float() for part in attention.project(x, table)[:2])
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # query head h reads key/value head h // group
    return mask_future(q @ k.transpose(-1, -2) / math.sqrt(attention.head_dim))


def mask_future(scores: Tensor) -> Tensor:
    """Sets what is above the diagonal of the last two axes to -inf."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, float("-inf"))


def as_scorer(model: Any) -> Scorer:
    """Returns a Scorer of a Decoder, or `model` itself where it is one. Raises PicoError for anything else."""
    if isinstance(model, Decoder):
        return DecoderScorer(model)
    if isinstance(model, Scorer):
        return model
    raise PicoError(
        f"a {type(model).__name__} is not a model whose behaviour can be measured",
        mend="give a pico.model.Decoder, pico.capture.hugging_face.HuggingFaceScorer(model) for a Hugging Face causal "
        "LM, or an object with vocab_size, context_length and log_probabilities(input_ids)",
    )


def log_probability_chunks(scorer: Scorer, input_ids: Tensor) -> Iterator[Tensor]:
    """Yields log-probabilities of all positions in row-major order, (positions, vocab_size) a time.

    Scorers may offer `log_probability_chunks` themselves to bound memory within a row; others are asked row by row
    as far as LOGITS_AT_ONCE allows.
    """
    if hasattr(scorer, "log_probability_chunks"):
        yield from scorer.log_probability_chunks(input_ids)
        return
    per_pass = max(1, LOGITS_AT_ONCE // (input_ids.shape[1] * scorer.vocab_size))
    for part in input_ids.split(per_pass):
        yield scorer.log_probabilities(part).flatten(0, 1)


def check_rows(scorer: Scorer, rows: np.ndarray) -> np.ndarray:
    """Returns `rows` as int64 (n, length >= 2). Raises PicoError for another shape, or what the model cannot read."""
    rows = np.asarray(rows, np.int64)
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise PicoError(f"token rows have shape {rows.shape}", mend="give (rows, seq_len + 1) with seq_len at least 1")
    if rows.shape[1] - 1 > scorer.context_length:
        raise PicoError(
            f"rows of {rows.shape[1]} ids are too long for a context of {scorer.context_length}",
            mend=f"give rows of at most {scorer.context_length + 1} ids",
        )
    if rows.size and (rows.min() < 0 or rows.max() >= scorer.vocab_size):
        raise PicoError(
            f"token ids run from {rows.min()} to {rows.max()}; the model's vocabulary has {scorer.vocab_size}",
            mend="give rows made by the model's own tokenizer",
        )
    return rows
