"""The exported folder is the trained model: same logits through transformers, refused otherwise; equal bytes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decoder_options import departures
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pico.checkpoint import Checkpoint, write_checkpoint
from pico.errors import PicoError
from pico.export.hugging_face import (
    ARCHITECTURES,
    EXPRESSED,
    TOLERANCE,
    architecture,
    interleaved_to_halves,
    llama_name,
    verify_export,
    write_model,
)
from pico.export.model_card import continuations
from pico.export.tokenizer import heldout_rows, write_tokenizer
from pico.model import Decoder, DecoderConfig

CONFIG = DecoderConfig(
    d_model=48,
    n_layers=2,
    vocab_size=300,
    max_seq_len=64,
    attention_n_heads=6,
    attention_n_kv_heads=2,
    activation_hidden_dim=80,
    norm_eps=1e-5,
    position_emb_theta=5000.0,
)


def halves_to_interleaved(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Undoes `interleaved_to_halves`."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2).contiguous()


def make_checkpoint(folder: Path, config: DecoderConfig = CONFIG) -> Checkpoint:
    """A model with weights far larger than a fresh one's, so that a wrong rotary layout or norm shows in its logits."""
    model = Decoder(config, seed=3)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: weight + 0.15 * torch.randn(weight.shape, generator=generator)
        for name, weight in model.state_dict().items()
    }
    return write_checkpoint(
        folder / "checkpoints" / "step_00000007", model=weights, config=config.to_dict(), trainer={}
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog sat on the cat"] * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    meta = {"kind": "bpe", "vocab_size": tokenizer.get_vocab_size(), "eos_token": "<|endoftext|>", "eos_id": 0}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_model(folder, checkpoint, dtype="float32", eos_id=0)
    write_tokenizer(folder, tokenizer_folder, max_seq_len=CONFIG.max_seq_len)
    return folder


def tokens(rows: int = 2, config: DecoderConfig = CONFIG) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (rows, config.max_seq_len), generator=generator)


@pytest.mark.parametrize(
    "options",
    [
        *departures(),
        {"norm": "layernorm", "activation": "gelu"},
        {"norm": "layernorm", "qk_norm": True},
        {"qk_norm": True, "tied_embeddings": True},
        {"tied_embeddings": True, "activation": "relu"},
    ],
    ids=str,
)
def test_options_become_the_architecture_that_has_them_or_are_refused(options: dict, tmp_path: Path) -> None:
    config = replace(CONFIG, **options)
    checkpoint = make_checkpoint(tmp_path / "run", config)
    if config.tied_embeddings:
        weights = checkpoint.model()
        weights["de_embedding_proj.weight"] = weights["embedding_proj.weight"]
        checkpoint = write_checkpoint(checkpoint.folder, model=weights, config=config.to_dict(), trainer={})
    folder = tmp_path / "export"
    folder.mkdir()
    own = {name: value for name, value in options.items() if name not in EXPRESSED}
    found = [one.model_type for one in ARCHITECTURES if one.options == own]
    if not found:
        with pytest.raises(PicoError, match=f"with {next(iter(options))} = "):
            write_model(folder, checkpoint, dtype="float32", eos_id=0)
        assert not list(folder.iterdir())
        return
    write_model(folder, checkpoint, dtype="float32", eos_id=0)
    assert json.loads((folder / "config.json").read_text())["model_type"] == found[0]
    assert verify_export(folder, checkpoint, torch.randint(0, 300, (2, 40))) < TOLERANCE


def test_what_transformers_can_compute_is_not_refused() -> None:
    for options in ({"qk_norm": True}, {"norm": "layernorm"}, {"positions": "none"}, {"tied_embeddings": True}):
        assert architecture(replace(CONFIG, **options))
    for options in ({"positions": "learned"}, {"norm": "layernorm", "qk_norm": True}):
        with pytest.raises(PicoError, match="no architecture"):
            architecture(replace(CONFIG, **options))


def test_row_orders_are_inverse_and_name_the_pairs() -> None:
    weight = torch.arange(24.0)[:, None].expand(24, 3)
    halves = interleaved_to_halves(weight, head_dim=8)
    assert torch.equal(halves_to_interleaved(halves, head_dim=8), weight)
    assert halves[:8, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert halves[8:16, 0].tolist() == [8, 10, 12, 14, 9, 11, 13, 15]


@pytest.mark.parametrize("change", [{}, {"attention_n_kv_heads": 6}, {"attention_n_kv_heads": 1, "d_model": 96}])
def test_logits_are_ours(tmp_path: Path, change: dict) -> None:
    config = replace(CONFIG, **change)
    checkpoint = make_checkpoint(tmp_path, config)
    write_model(tmp_path / "export", checkpoint, dtype="float32", eos_id=0)
    assert verify_export(tmp_path / "export", checkpoint, tokens(config=config)) <= TOLERANCE


def test_bfloat16_weights_are_the_rounded_ones(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write_model(tmp_path, checkpoint, dtype="bfloat16", eos_id=0)
    assert verify_export(tmp_path, checkpoint, tokens()) <= TOLERANCE
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


def test_a_wrong_row_order_is_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write_model(tmp_path, checkpoint, dtype="float32", eos_id=0)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = halves_to_interleaved(tensors[name], CONFIG.head_dim)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PicoError, match="a logit differs by"):
        verify_export(tmp_path, checkpoint, tokens())


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    weights = checkpoint.model()
    weights["output_norm.weight"] = torch.full_like(weights["output_norm.weight"], float("nan"))
    broken = write_checkpoint(
        tmp_path / "checkpoints" / "step_00000001", model=weights, config=checkpoint.config, trainer={}
    )
    write_model(tmp_path / "export", broken, dtype="float32", eos_id=0)
    with pytest.raises(PicoError, match="nan"):
        verify_export(tmp_path / "export", broken, tokens())


def test_equal_checkpoints_give_equal_bytes(
    tmp_path: Path, checkpoint: Checkpoint, tokenizer_folder: Path, exported: Path
) -> None:
    write_model(tmp_path, checkpoint, dtype="float32", eos_id=0)
    write_tokenizer(tmp_path, tokenizer_folder, max_seq_len=CONFIG.max_seq_len)
    names = sorted(path.name for path in exported.iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (tmp_path / name).read_bytes() == (exported / name).read_bytes()


def test_configuration_survives_transformers(exported: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(exported)
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (48, 2, 8)
    assert (config.num_attention_heads, config.num_key_value_heads) == (6, 2)
    assert config.rope_parameters["rope_theta"] == 5000.0
    assert (config.rms_norm_eps, config.max_position_embeddings, config.vocab_size) == (1e-5, 64, 300)
    assert not config.tie_word_embeddings


def test_tokenizer_is_the_one_trained_with(exported: Path, tokenizer_folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours = (
        AutoTokenizer.from_pretrained(exported),
        Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json")),
    )
    for text in ["the cat sat", " two  spaces\n\ttabs", "naïve — 東京 🙂", "a .b ' s , c"]:
        assert theirs(text)["input_ids"] == ours.encode(text).ids
        assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.eos_token_id == theirs.bos_token_id == theirs.pad_token_id == 0
    assert theirs.model_max_length == CONFIG.max_seq_len
    assert len(theirs) == ours.get_vocab_size()


def test_a_tokenizer_without_its_eos_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    (tmp_path / "meta.json").write_text(json.dumps({"eos_token": "<|end|>", "eos_id": 0}))
    with pytest.raises(PicoError, match=r"does not hold '<\|end\|>'"):
        write_tokenizer(tmp_path / "export", tmp_path, max_seq_len=64)


def test_generation_with_a_cache_is_greedy_decoding_of_our_model(exported: Path, checkpoint: Checkpoint) -> None:
    from transformers import AutoTokenizer

    prompt = "the cat"
    [sample] = continuations(exported, (prompt,), new_tokens=12)
    model = Decoder(CONFIG).eval()
    model.load_state_dict(checkpoint.model())
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(12):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == 0:
            break
    assert sample == {"prompt": prompt, "continuation": tokenizer.decode(ids[start:], skip_special_tokens=True)}


def test_a_prompt_longer_than_the_context_is_cut(exported: Path) -> None:
    [sample] = continuations(exported, ("the cat sat on the mat " * 40,), new_tokens=200)
    assert isinstance(sample["continuation"], str)


def test_an_unknown_parameter_is_named() -> None:
    assert llama_name("layers.11.swiglu.w_2.weight") == "model.layers.11.mlp.down_proj.weight"
    with pytest.raises(PicoError, match=r"layers\.0\.lora_a"):
        llama_name("layers.0.lora_a")


def test_heldout_rows_come_from_every_domain(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "heldout").mkdir()
    for start, domain in enumerate(["a", "b"]):
        rows = [[start * 10 + i] * 5 for i in range(3)]
        pq.write_table(
            pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))}), tmp_path / f"heldout/{domain}.parquet"
        )
    assert heldout_rows(tmp_path, 2)[:, 0].tolist() == [0, 1, 10, 11]
    with pytest.raises(PicoError, match="no held-out rows"):
        heldout_rows(tmp_path / "nowhere", 2)
