"""The shape and the options of a decoder, stated once: names, types, choices, limits, defaults and meanings.

The sections `model` and `models.NAME` of params.yaml, docs/settings.md, config.json and what can be exported follow
from `DecoderConfig`; pico/model/decoder.py is what it describes. No torch here: settings are read without it.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, create_model, model_validator
from pydantic.dataclasses import dataclass

from pico.config.base import STRICT, Positive, PositiveFloat, Section, fields_of, problems
from pico.errors import PicoError

WIDTHS = ("d_model", "activation_hidden_dim")
"""The only fields that differ between the models of a suite."""


class Misfit(PicoError):
    """Values that do not fit together. `{name}` in the rule stands for a value and the key that it is set by."""

    def __init__(self, rule: str, values: Mapping[str, Any], keys: Mapping[str, str] | None = None) -> None:
        self.rule, self.values = rule, values
        shown = {name: f"{(keys or {}).get(name, name)} = {value}" for name, value in values.items()}
        super().__init__(rule.format_map(shown), mend="change one of them")


@dataclass(frozen=True, config=STRICT)
class DecoderConfig:
    """The shape of a decoder.

    Raises PicoError where a value is none of its choices or beyond its limits, and where values do not fit together.
    """

    d_model: Positive
    """Width of the residual stream."""
    n_layers: Annotated[int, Field(gt=0, le=1000)]
    """Blocks of attention and MLP."""
    vocab_size: Positive
    """Entries of the embedding; at least those of the tokenizer."""
    max_seq_len: Positive
    """The longest context, in tokens; rotary tables are made for it."""
    attention_n_heads: Positive
    """Query heads."""
    attention_n_kv_heads: Positive
    """Key/value heads, each shared by an equal group of query heads."""
    activation_hidden_dim: Positive
    """Width of the MLP."""
    norm_eps: PositiveFloat = 1e-6
    """Added to the mean square, or the variance, in norms."""
    position_emb_theta: PositiveFloat = 10000.0
    """Base of the rotary frequencies."""
    _: KW_ONLY
    # Options, for studies of what each part does. The default is the published decoder, to the bit.
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """`layernorm` also takes the mean away."""
    activation: Literal["silu", "gelu", "relu"] = "silu"
    """Activation of the MLP's gate: SwiGLU, GeGLU or ReGLU."""
    positions: Literal["rotary", "learned", "none"] = "rotary"
    """Source of order in attention: rotated queries and keys, a learned vector added to each embedding, or causality
    alone."""
    tied_embeddings: bool = False
    """Read and write tokens with one matrix."""
    qk_norm: bool = False
    """Normalise queries and keys in each head, before they are rotated (arXiv 2302.05442)."""

    def __post_init__(self) -> None:
        if self.attention_n_heads % self.attention_n_kv_heads:
            raise self._misfit(
                "{attention_n_heads} is not a multiple of {attention_n_kv_heads}: each key/value head serves the same "
                "number of query heads"
            )
        if self.d_model % self.attention_n_heads:
            raise self._misfit("{d_model} is not a multiple of {attention_n_heads}: every head has the same width")
        if self.positions == "rotary" and self.head_dim % 2:
            raise self._misfit(
                "{d_model} is not a multiple of twice {attention_n_heads}: with {positions}, pairs of a head's "
                "coordinates are rotated, so that its width must be even"
            )

    def _misfit(self, rule: str) -> Misfit:
        return Misfit(rule, asdict(self))

    @model_validator(mode="wrap")
    @classmethod
    def _errors_are_ours(cls, values: Any, handler: ValidatorFunctionWrapHandler) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise PicoError(
                "\n".join(["a decoder cannot have this shape", *(f"  - {line}" for line in problems(error, cls))]),
                mend="docs/settings.md lists what `model` and `models.NAME` may hold",
            ) from None

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.attention_n_heads

    @property
    def departures(self) -> dict[str, Any]:
        """The options that are not at their default, by name: none for the published decoder."""
        return {name: value for name, default in OPTIONS.items() if (value := getattr(self, name)) != default}

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, as config.json holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Returns the inverse of `to_dict`. Raises PicoError naming unknown or missing keys; OPTIONS may be missing."""
        known = {field.name for field in fields(cls)}
        if wrong := sorted((values.keys() - known) | (known - values.keys() - set(OPTIONS))):
            raise PicoError(
                f"a decoder configuration has unknown or missing keys: {', '.join(wrong)}",
                mend=f"it must have {', '.join(sorted(known - set(OPTIONS)))}, and may have {', '.join(OPTIONS)}",
            )
        return cls(**values)


OPTIONS: dict[str, Any] = {field.name: field.default for field in fields(DecoderConfig) if field.kw_only}
"""The defaults of the fields that a config.json may lack: those of older and of published checkpoints do."""

WORDS: dict[str, dict[Any, str]] = {
    "norm": {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"},
    "activation": {"silu": "SwiGLU", "gelu": "GEGLU", "relu": "ReGLU"},
    "positions": {"rotary": "rotary embeddings", "learned": "learned positions", "none": "no positions"},
    "tied_embeddings": {False: "untied embeddings", True: "tied embeddings"},
    "qk_norm": {True: "normalised queries and keys"},
}
"""Names of the options' values in prose; an option that is not here is shown as `name = value`."""


def in_words(config: "DecoderConfig | Model") -> dict[str, str]:
    """Returns the options in force by name, as the model card and the report word them.

    An option without words for its value is left out at its default, and `name = value` elsewhere.
    """
    found: dict[str, str] = {}
    for name, default in OPTIONS.items():
        value = getattr(config, name)
        if value in WORDS.get(name, {}):
            found[name] = WORDS[name][value]
        elif value != default:
            found[name] = f"{name} = {value}"
    return found


if TYPE_CHECKING:  # a type checker cannot follow `create_model`; the attributes are these
    Model = DecoderConfig
    Width = DecoderConfig
else:

    def _section(name: str, doc: str, names: list[str]) -> type[Section]:
        own = {field: (fields_of(DecoderConfig)[field].annotation, fields_of(DecoderConfig)[field]) for field in names}
        return create_model(name, __base__=Section, __module__=__name__, __doc__=doc, **own)

    Model = _section(
        "Model",
        "The shape that all models of the suite share; names of the published pico-decoder.",
        [name for name in fields_of(DecoderConfig) if name not in WIDTHS],
    )
    Width = _section(
        "Width", "The widths of one model; nothing else differs between the models of a suite.", list(WIDTHS)
    )
