"""A Hugging Face folder from a checkpoint: the Llama architecture, so that any tool loads it with no remote code.

Decoders with one of the options of DecoderConfig that Llama lacks become the architecture of transformers that has it
(Qwen3: norms of queries and keys; StableLM: LayerNorm; SmolLM3: layers without positions).

Our attention rotates interleaved pairs (2j, 2j + 1) of each head; Llama rotates pairs (j, j + head_dim / 2). The two
are the same function once the rows of q and k are permuted within each head, so the folder holds permuted rows and
nothing else changes. `verify_export` proves it on real tokens before anything is published.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from pico.checkpoint import Checkpoint, read_tensors
from pico.errors import PicoError
from pico.files import full_disk_named, write_json
from pico.model import Decoder, DecoderConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = 1e-4
"""Largest absolute difference of a logit that `verify_export` accepts; rounding gives about 1e-5."""

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
MODEL_NAMES = {
    "embedding_proj.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "de_embedding_proj.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attention.q_proj.weight": "self_attn.q_proj.weight",
    "attention.k_proj.weight": "self_attn.k_proj.weight",
    "attention.v_proj.weight": "self_attn.v_proj.weight",
    "attention.o_proj.weight": "self_attn.o_proj.weight",
    "swiglu.w_0.weight": "mlp.gate_proj.weight",
    "swiglu.w_1.weight": "mlp.up_proj.weight",
    "swiglu.w_2.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "swiglu_norm.weight": "post_attention_layernorm.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
}
ROTATED = tuple(f"attention.{name}.weight" for name in ("q_proj", "k_proj", "q_norm", "k_norm"))
"""Parameters whose rows are rotated in pairs, or normalised before that."""


class Architecture(NamedTuple):
    """An architecture of transformers that computes what a decoder with certain options computes."""

    title: str
    model_class: str
    model_type: str
    options: dict[str, Any]
    """The options that it has beyond those of EXPRESSED; all others must be at their default."""


ARCHITECTURES = (
    Architecture("Llama", "LlamaForCausalLM", "llama", {}),
    Architecture("Qwen3", "Qwen3ForCausalLM", "qwen3", {"qk_norm": True}),
    Architecture("StableLM", "StableLmForCausalLM", "stablelm", {"norm": "layernorm"}),
    Architecture("SmolLM3", "SmolLM3ForCausalLM", "smollm3", {"positions": "none"}),
)
EXPRESSED = ("activation", "tied_embeddings")
"""Options that config.json has a key for, whatever the architecture. An option of DecoderConfig that is neither here
nor in ARCHITECTURES is refused when it is in force."""


def architecture(config: DecoderConfig) -> Architecture:
    """Returns the architecture that has the options in force. Raises PicoError, naming them, where none has."""
    options = {name: value for name, value in config.departures.items() if name not in EXPRESSED}
    for found in ARCHITECTURES:
        if found.options == options:
            return found
    known = [f"{name}: {str(value).lower()}" for one in ARCHITECTURES for name, value in one.options.items()]
    raise PicoError(
        "no architecture of transformers is a gated decoder without biases with "
        + ", ".join(f"{name} = {value}" for name, value in options.items()),
        mend="use the checkpoint with pico.model.load_decoder, or train with one such option at most "
        f"({', '.join(known)}), which can be exported",
    )


def interleaved_to_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Reorders the rows of a q or k projection, (heads * head_dim, ...): in each head even rows first, then odd."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def llama_name(name: str) -> str:
    """Returns the Llama name of one of our parameters. Raises PicoError for a name that no known decoder has."""
    if name in MODEL_NAMES:
        return MODEL_NAMES[name]
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if match and match[2] in LAYER_NAMES:
        return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}"
    raise PicoError(
        f"parameter {name} has no counterpart in the Llama architecture",
        mend="only pico-decoder checkpoints are exported",
    )


def llama_tensors(weights: Mapping[str, Tensor], config: DecoderConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns the parameters of a checkpoint under Llama's names, in `dtype`, with q and k in Llama's row order.

    Tied embeddings are there once. StableLM's norms have biases, which are 0.
    """
    tensors = {}
    for name in sorted(weights):
        if config.tied_embeddings and name == "de_embedding_proj.weight":
            continue
        weight = weights[name].to(dtype)
        if name.endswith(ROTATED):
            weight = interleaved_to_halves(weight, config.head_dim)
        tensors[llama_name(name)] = weight.contiguous()
        if config.norm == "layernorm" and name.endswith("norm.weight"):
            tensors[llama_name(name).removesuffix("weight") + "bias"] = torch.zeros_like(weight)
    return tensors


def llama_config(config: DecoderConfig, *, dtype: str, eos_id: int) -> dict[str, Any]:
    """Returns config.json of a LlamaForCausalLM, or of the `architecture` that fits.

    Rotary settings and the type are given under their older names as well, which llama.cpp, vLLM and transformers 4
    read; no version of a library is in it, so equal models give equal bytes.
    """
    found = architecture(config)
    own: dict[str, Any] = {}
    if found.model_type == "stablelm":
        own = {"layer_norm_eps": config.norm_eps, "partial_rotary_factor": 1.0}
    elif found.model_type == "smollm3":
        own = {"no_rope_layers": [0] * config.n_layers}
    return {
        "architectures": [found.model_class],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": config.head_dim,
        "hidden_act": config.activation,
        "hidden_size": config.d_model,
        "initializer_range": 0.02,
        "intermediate_size": config.activation_hidden_dim,
        "max_position_embeddings": config.max_seq_len,
        "mlp_bias": False,
        "model_type": found.model_type,
        "num_attention_heads": config.attention_n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.attention_n_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.position_emb_theta, "rope_type": "default"},
        "rope_theta": config.position_emb_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
        **dict.fromkeys(SPECIAL, eos_id),
        **own,
    }


def write_model(folder: Path, checkpoint: Checkpoint, *, dtype: str, eos_id: int) -> None:
    """Writes config.json, generation_config.json and model.safetensors into `folder`; `dtype`: a key of DTYPES."""
    config = DecoderConfig.from_dict(checkpoint.config)
    described = llama_config(config, dtype=dtype, eos_id=eos_id)  # refuses what cannot be exported
    tensors = llama_tensors(checkpoint.model(), config, DTYPES[dtype])
    write_json(folder / "config.json", described)
    write_json(folder / "generation_config.json", {"do_sample": False, **dict.fromkeys(SPECIAL, eos_id)})
    with full_disk_named(folder / "model.safetensors"):
        # The metadata is what transformers itself writes; without it older releases refuse the file.
        save_file(dict(sorted(tensors.items())), folder / "model.safetensors", metadata={"format": "pt"})


def load_exported(folder: Path) -> Any:
    """Returns the model of an exported folder as its users load it, in float32 and eval mode."""
    from transformers import AutoModelForCausalLM  # slow to import, so only where it is used
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    finally:
        if shown:
            logging.enable_progress_bar()


@torch.no_grad()
def verify_export(folder: Path, checkpoint: Checkpoint, input_ids: Tensor) -> float:
    """Loads `folder` the way users do and compares its logits with ours on `input_ids`, (rows, seq) int64.

    Ours is the checkpoint with its weights rounded to the exported type; both sides compute in float32. Returns the
    largest absolute difference of a logit; raises PicoError when it exceeds TOLERANCE or is not a number.
    """
    theirs = load_exported(folder)
    exported = read_tensors(folder / "model.safetensors")["model.embed_tokens.weight"].dtype
    ours = Decoder(DecoderConfig.from_dict(checkpoint.config)).eval()
    ours.load_state_dict({name: weight.to(exported).float() for name, weight in checkpoint.model().items()})
    worst = 0.0
    for row in input_ids:  # one at a time: logits of a whole batch over a large vocabulary would not fit in memory
        difference = (theirs(row[None]).logits - ours(row[None])).abs().max().item()
        # `not (d <= t)` rather than `d > t`, so that NaN is refused too.
        if not difference <= TOLERANCE:
            raise PicoError(
                f"the exported model is not ours: a logit differs by {difference:.3g}, more than {TOLERANCE:g}",
                where=f"{checkpoint.folder}, exported as {exported}",
                mend="nothing was published; if this model's loss is finite, please report it with its params.yaml",
            )
        worst = max(worst, difference)
    return worst
