"""Mappings of Hugging Face architectures: the places of what the analysis looks at, and the layout of heads.

Everything is given pico-decoder's names and layout, so that a row, a column and a head mean the same in every table:

    attention.{q,k,v,o}_proj    queries, keys, values, and what attention adds to the residual stream
    swiglu.w_0, swiglu.w_1      what the MLP reads with: gate and up; a plain MLP has w_0 alone
    swiglu.w_2                  what the MLP adds to the residual stream
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pico.errors import PicoError
from pico.files import read_json

QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
NEEDED = (*QKV, "attention.o_proj", "swiglu.w_2")
KNOWN = (*NEEDED, "swiglu.w_0", "swiglu.w_1")
FUSED = (None, "per_head", "blocks")
ROTARY = (None, "halves", "interleaved")


@dataclass(frozen=True)
class Architecture:
    """The mapping of one architecture; as JSON, a file for `pico analyze --mapping`."""

    layers: str
    """The module that lists the blocks: `gpt_neox.layers`."""
    modules: Mapping[str, str]
    """pico's name -> the module within a block. Fused queries, keys and values name the same module."""
    fused: str | None = None
    """The order of a fused module's outputs: `per_head` (q, k, v of head 0, then of head 1, ...: GPT-NeoX) or `blocks`
    (all queries, all keys, all values: GPT-2)."""
    transposed: bool = False
    """True where weights are stored (in, out), as GPT-2's Conv1D does."""
    rotary: str | None = None
    """The coordinates of a head that rotary embeddings turn together: `halves` (j and j + d / 2), `interleaved` (2j and
    2j + 1, pico's), or none. Rows of q and k are reordered to pico's; products of the two do not notice."""


_SEPARATE = {name: name.replace("attention", "self_attn") for name in QKV}

_LLAMA = Architecture(
    layers="model.layers",
    modules={
        **_SEPARATE,
        "attention.o_proj": "self_attn.o_proj",
        "swiglu.w_0": "mlp.gate_proj",
        "swiglu.w_1": "mlp.up_proj",
        "swiglu.w_2": "mlp.down_proj",
    },
    rotary="halves",
)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt_neox": Architecture(
        layers="gpt_neox.layers",
        modules={
            **dict.fromkeys(QKV, "attention.query_key_value"),
            "attention.o_proj": "attention.dense",
            "swiglu.w_0": "mlp.dense_h_to_4h",
            "swiglu.w_2": "mlp.dense_4h_to_h",
        },
        fused="per_head",
        rotary="halves",
    ),
    "gpt2": Architecture(
        layers="transformer.h",
        modules={
            **dict.fromkeys(QKV, "attn.c_attn"),
            "attention.o_proj": "attn.c_proj",
            "swiglu.w_0": "mlp.c_fc",
            "swiglu.w_2": "mlp.c_proj",
        },
        fused="blocks",
        transposed=True,
    ),
    "opt": Architecture(
        layers="model.decoder.layers",
        modules={
            **_SEPARATE,
            "attention.o_proj": "self_attn.out_proj",
            "swiglu.w_0": "fc1",
            "swiglu.w_2": "fc2",
        },
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}
"""The known mappings by `model_type` of config.json."""


@dataclass(frozen=True)
class Shape:
    """The sizes that say how a projection's outputs fall into heads."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rotary_dims: int
    """The number of coordinates of a head, from the first, that are rotated."""


def architecture_of(model_type: str, mapping: Path | None = None) -> Architecture:
    """Returns the mapping of a `model_type`, or the one in the JSON file `mapping`.

    Raises PicoError naming an architecture that is not known, and what a mapping file lacks.
    """
    if mapping is not None:
        return _read(mapping)
    if model_type not in ARCHITECTURES:
        raise PicoError(
            f"architecture {model_type!r} is not known; those that are: {', '.join(ARCHITECTURES)}",
            mend="say where it keeps its projections with --mapping FILE.json; docs/any-model.md shows one",
        )
    return ARCHITECTURES[model_type]


def _read(path: Path) -> Architecture:
    values = read_json(path)
    known = {field.name for field in fields(Architecture)}
    mend = "docs/any-model.md shows a mapping"
    if not isinstance(values, dict) or not {"layers", "modules"} <= values.keys() <= known:
        raise PicoError(
            f"{path} is not a mapping: it needs layers and modules, and may have {', '.join(sorted(known))}", mend=mend
        )
    found = Architecture(**values)
    modules = found.modules
    if not isinstance(modules, dict) or not set(NEEDED) <= modules.keys() <= set(KNOWN):
        raise PicoError(f"{path}: modules must have {', '.join(NEEDED)}, and may have {', '.join(KNOWN)}", mend=mend)
    for name, value, choices in (("fused", found.fused, FUSED), ("rotary", found.rotary, ROTARY)):
        if value not in choices:
            raise PicoError(f"{path}: {name} = {value!r} is none of {', '.join(map(repr, choices))}", mend=mend)
    same = len({modules[name] for name in QKV}) == 1
    if same != (found.fused is not None):
        raise PicoError(f"{path}: fused goes with q, k and v that name one module, and only with it", mend=mend)
    return found


def output_rows(architecture: Architecture, shape: Shape, name: str) -> Tensor | None:
    """Returns which outputs of the Hugging Face module are pico's module `name`, in order; None for all as they are."""
    if name not in QKV:
        return None
    which = QKV.index(name)
    heads = shape.n_heads if which == 0 else shape.n_kv_heads
    rows = torch.arange(heads * shape.head_dim).view(heads, shape.head_dim)
    if architecture.fused == "per_head":
        rows = rows + 2 * shape.head_dim * torch.arange(heads)[:, None] + which * shape.head_dim
    elif architecture.fused == "blocks":
        rows = rows + (0, shape.n_heads, shape.n_heads + shape.n_kv_heads)[which] * shape.head_dim
    if which < 2 and architecture.rotary == "halves":
        turned, rest = rows.split([shape.rotary_dims, shape.head_dim - shape.rotary_dims], dim=1)
        rows = torch.cat([turned.unflatten(1, (2, -1)).transpose(1, 2).flatten(1), rest], dim=1)
    elif architecture.fused is None:
        return None
    return rows.flatten()


def shape_of(config: Any) -> Shape:
    """Returns the head sizes of a transformers configuration. Raises PicoError where it does not give them."""
    try:
        n_heads, width = int(config.num_attention_heads), int(config.hidden_size)
    except AttributeError as error:
        raise PicoError(
            f"config.json of architecture {config.model_type!r} does not say how many heads there are ({error})",
            mend="only decoders whose layers are all alike can be analysed",
        ) from None
    head_dim = int(getattr(config, "head_dim", None) or width // n_heads)
    n_kv_heads = int(getattr(config, "num_key_value_heads", None) or n_heads)
    share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor") or 1.0
    return Shape(n_heads, n_kv_heads, head_dim, int(head_dim * share))
