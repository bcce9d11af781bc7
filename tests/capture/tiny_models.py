"""Tiny random models of the architectures, as folders that transformers wrote, with a byte-level tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_neox": {
        "num_attention_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "gpt2": {"n_head": 4},
    "opt": {"num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "mistral": {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"num_attention_heads": 4, "num_key_value_heads": 2},
}


def make_model(model_type: str, seed: int = 0) -> Any:
    """A causal LM of 2 layers and width 32, with weights and biases large enough for attention to be uneven."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 256, "max_position_embeddings": 64}
    if model_type not in ("gpt2", "opt"):
        shape["intermediate_size"] = 64
    config = AutoConfig.for_model(model_type, **shape, **CONFIGS[model_type])
    config.pad_token_id = None
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def write_tokenizer(folder: Path) -> None:
    """256 bytes, and nothing else."""
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_model(folder: Path, model_type: str, seed: int = 0) -> Path:
    model = make_model(model_type, seed)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder
