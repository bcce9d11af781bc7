"""Behaviour and loss landscape: what a model does, and how its loss curves. For our Decoder and for any causal LM."""

from pico.behaviour.catalogue import CATALOGUE, Entry
from pico.behaviour.scorer import AttentionScorer, DecoderScorer, DifferentiableScorer, Scorer, as_scorer

__all__ = ["CATALOGUE", "AttentionScorer", "DecoderScorer", "DifferentiableScorer", "Entry", "Scorer", "as_scorer"]
