"""Memorisation: how many training rows a model continues word for word."""

import numpy as np

from pico.analysis.metrics.registry import Measurement
from pico.behaviour.catalogue import listed, measured, undefined
from pico.behaviour.predictions import predict
from pico.behaviour.scorer import Scorer

PROMPT, CONTINUATION = 32, 32


@listed(
    "memorisation",
    definition="share of rows whose tokens 33 to 64 a greedy continuation of the first 32 gives exactly",
    source="Carlini et al. 2022, arXiv 2202.07646; Biderman et al. 2023, arXiv 2304.11158",
)
def memorisation(
    scorer: Scorer, rows: np.ndarray, prompt: int = PROMPT, continuation: int = CONTINUATION
) -> Measurement:
    """rows: (n, at least prompt + continuation) ids, of which the first are used.

    Cost: one forward pass over n x (prompt + continuation) tokens. No text is generated: the greedy continuation equals
    the row's exactly if every token of the row is the most probable one given the row's own tokens before it, because
    up to the first mismatch the two contexts are the same. n_too_small where rows are too short or there are none.
    """
    length = prompt + continuation
    if not len(rows) or rows.shape[1] < length or scorer.context_length < length - 1:
        return undefined("n_too_small", len(rows), scorer.vocab_size)
    matched = predict(scorer, rows[:, :length]).correct[:, prompt - 1 :].all(axis=1)
    return measured(float(matched.mean()), len(rows), scorer.vocab_size)
