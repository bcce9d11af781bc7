"""Sound data, and copies of them to be spoilt."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gate_cases import QUESTION, SHORT
from made_documents import BPE, made_up, packing, plain, small_corpus

from pico.data.preparation.pipeline import prepare


def write_benchmarks(folder):
    """Two benchmarks in schemas of their own."""
    questions = [QUESTION, SHORT, *(f"{text} and so what is it" for text in made_up(20, 77))]
    choices = [{"text": ["a worm", "a bacterium"], "label": ["A", "B"]}] * len(questions)
    (folder / "sciences").mkdir(parents=True)
    pq.write_table(pa.table({"question": questions, "choices": choices}), folder / "sciences/validation.parquet")
    (folder / "passages").mkdir()
    pq.write_table(pa.table({"text": made_up(20, 78)}), folder / "passages/test.parquet")


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    write_benchmarks(root / "benchmarks")
    prepare(small_corpus(root / "documents"), root / "tokens", tokenizer=BPE, packing=packing(), vocab_size=300,
            cleaning=plain(), runs=root / "runs")  # fmt: skip
    return root


@pytest.fixture
def data(sound, tmp_path):
    """A copy of the sound data, to be spoilt."""
    return shutil.copytree(sound, tmp_path / "data")
