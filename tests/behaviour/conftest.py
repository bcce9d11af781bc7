"""Models whose behaviour is known, by construction or because they are small enough to compute it the plain way."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from pico.model import Decoder, DecoderConfig

VOCAB = 23


@pytest.fixture
def decoder() -> Decoder:
    """Two layers, four heads on two key/value heads; weights large enough that attention is not uniform."""
    config = DecoderConfig(
        d_model=16, n_layers=2, vocab_size=VOCAB, max_seq_len=80, attention_n_heads=4, attention_n_kv_heads=2,
        activation_hidden_dim=24,
    )  # fmt: skip
    model = Decoder(config, seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(12)
    return model


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (6, 33))


class TableScorer:
    """A Scorer that gives the same distribution after a token, wherever it stands: a bigram model."""

    def __init__(self, table: np.ndarray, context_length: int = 4096) -> None:
        self.table = torch.from_numpy(np.log(table))
        self.vocab_size, self.context_length = table.shape[1], context_length

    def log_probabilities(self, input_ids: Tensor) -> Tensor:
        return self.table[input_ids].float()


class InductionScorer:
    """Two layers of attention on one-hot token embeddings: an induction head, and a head that attends uniformly.

    Head 0's query at i is token i, its key at j the token before j (the previous-token head's work): it looks for the
    token that followed the last time. Its prediction copies what it looks at. Head 1's scores are all equal.
    """

    def __init__(self, vocab_size: int, context_length: int = 1024) -> None:
        self.vocab_size, self.context_length = vocab_size, context_length

    def attention_logits(self, input_ids: Tensor) -> Iterator[Tensor]:
        tokens = torch.nn.functional.one_hot(input_ids, self.vocab_size).float()
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        scores = torch.stack(
            [100 * tokens @ before.transpose(1, 2), torch.zeros(*input_ids.shape, input_ids.shape[1])], 1
        )
        yield scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))

    def log_probabilities(self, input_ids: Tensor) -> Tensor:
        attention = next(self.attention_logits(input_ids))[:, 0].softmax(-1)
        copied = attention @ torch.nn.functional.one_hot(input_ids, self.vocab_size).float()
        sharp = attention.amax(-1, keepdim=True) > 0.99  # else it has seen nothing of the kind: any token may come
        uniform = torch.full_like(copied, 1 / self.vocab_size)
        return torch.where(sharp & (torch.arange(input_ids.shape[1]) > 0)[:, None], copied + 1e-9, uniform).log()
