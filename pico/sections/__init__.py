"""The sections of params.yaml: names, types, limits and meaning. docs/settings.md is made from this."""

from pico.sections.analysis import Analysis, Behaviour, Benchmarks, BenchmarkTask, Evaluation, Export, Report
from pico.sections.base import Section
from pico.sections.data import (
    Cleaning,
    Corpus,
    Gates,
    HubDataset,
    Packing,
    PretrainedTokenizer,
    Source,
    Tokenizer,
    Wheel,
)
from pico.sections.training import (
    Checkpoints,
    LearningDynamics,
    Live,
    Model,
    Optimizer,
    Schedule,
    Suite,
    Training,
    Width,
)

__all__ = [
    "Analysis",
    "Behaviour",
    "BenchmarkTask",
    "Benchmarks",
    "Checkpoints",
    "Cleaning",
    "Corpus",
    "Evaluation",
    "Export",
    "Gates",
    "HubDataset",
    "LearningDynamics",
    "Live",
    "Model",
    "Optimizer",
    "Packing",
    "PretrainedTokenizer",
    "Report",
    "Schedule",
    "Section",
    "Source",
    "Suite",
    "Tokenizer",
    "Training",
    "Wheel",
    "Width",
]
