"""Settings: the sections of params.yaml, typed and strict, and `load_params`, which reads and checks them."""

from pico.config.analysis import Analysis, Behaviour, Benchmarks, BenchmarkTask, Evaluation, Export, Report
from pico.config.base import Section
from pico.config.data import (
    Cleaning,
    Corpus,
    ExpectationSuite,
    Gates,
    HubDataset,
    Packing,
    PretrainedTokenizer,
    Source,
    Tokenizer,
    Wheel,
)
from pico.config.params import Params, known_keys, load_params, parse_params, section_of
from pico.config.training import (
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
    "ExpectationSuite",
    "Export",
    "Gates",
    "HubDataset",
    "LearningDynamics",
    "Live",
    "Model",
    "Optimizer",
    "Packing",
    "Params",
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
    "known_keys",
    "load_params",
    "parse_params",
    "section_of",
]
