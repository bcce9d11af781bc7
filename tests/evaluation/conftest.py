"""A small model, a small tokenizer, and a few rows of each benchmark in its original schema."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pico.model import Decoder, DecoderConfig

CONFIG = DecoderConfig(
    d_model=32, n_layers=2, vocab_size=400, max_seq_len=48, attention_n_heads=4, attention_n_kv_heads=2,
    activation_hidden_dim=64,
)  # fmt: skip
EOS_ID = 0

ROWS: dict[str, tuple[str, list[dict]]] = {
    "sciq": ("validation", [
        {"question": f"What is {n}?", "distractor3": "a stone", "distractor1": "a leaf", "distractor2": "rain",
         "correct_answer": f"the number {n}", "support": f" {n} comes after {n - 1}." if n % 2 else ""}
        for n in range(12)
    ]),
    "arc_easy": ("validation", [
        {"id": str(n), "question": f"Which one is {n}?",
         "choices": {"text": ["one", "two", "three", "four", "five"][: 3 + n], "label": list("ABCDE")[: 3 + n]},
         "answerKey": "ABCDE"[n]}
        for n in range(3)
    ]),
    "piqa": ("validation", [
        {"goal": "Open the jar.", "sol1": "Turn the lid.", "sol2": "Turn the table over.", "label": 0},
        {"goal": "Dry a cup.", "sol1": "Pour water in.", "sol2": "Use a cloth.", "label": 1},
    ]),
    "hellaswag": ("validation", [
        {"ind": 1, "activity_label": "Roof", "ctx_a": "A man sits [title] on a roof.", "ctx_b": "he", "ctx": "",
         "endings": ["pulls [step] up roofing.", "swims.", "sings a song.", "is a bird."], "source_id": "a",
         "split": "val", "split_type": "indomain", "label": "0"},
    ]),
    "lambada": ("test", [{"text": "he knocked and she opened the door"}, {"text": "the sea was as blue as the sky"}]),
}  # fmt: skip


@pytest.fixture(scope="session")
def model() -> Decoder:
    """Random weights, larger than a fresh model's, so that predictions differ."""
    decoder = Decoder(CONFIG, seed=1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.mul_(8)
    return decoder.eval()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level BPE with EOS 0."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(
        ["the question is what the answer to the question was, and the answer is the end"], trainer
    )
    return made


@pytest.fixture(scope="session")
def benchmark_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for data/benchmarks."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for name, (split, rows) in ROWS.items():
        (folder / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), folder / name / f"{split}.parquet")
    return folder
