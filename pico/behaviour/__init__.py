"""Behaviour and loss landscape: the predictions of a model, its heads, and the curvature of its loss."""

from pico.behaviour.measure import BehaviourTask, measure_behaviour, measure_checkpoint
from pico.behaviour.scorer import AttentionScorer, DecoderScorer, DifferentiableScorer, Scorer, as_scorer
from pico.behaviour.subject import BehaviourSettings, Subject, Value, measured, undefined

__all__ = [
    "AttentionScorer",
    "BehaviourSettings",
    "BehaviourTask",
    "DecoderScorer",
    "DifferentiableScorer",
    "Scorer",
    "Subject",
    "Value",
    "as_scorer",
    "measure_behaviour",
    "measure_checkpoint",
    "measured",
    "undefined",
]
