"""Benchmarks: the same questions as lm-eval's own, the same worth given to answers."""

import math
from pathlib import Path
from typing import Any

import lm_eval
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lm_eval.evaluator import evaluate
from lm_eval.tasks._yaml_loader import load_yaml
from tokenizers import Tokenizer

from pico.errors import PicoError
from pico.evaluation.answer import Answerer
from pico.evaluation.benchmarks import TASKS, AnsweredLM, Benchmark, DecoderLM, choose_rows
from pico.model import Decoder

ORIGINALS = {
    "sciq": "sciq/sciq.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada": "lambada/lambada_openai.yaml",
}
METRICS = {"sciq": "acc_norm", "arc_easy": "acc_norm", "piqa": "acc_norm", "hellaswag": "acc_norm", "lambada": "acc"}
CHANCE = {"sciq": 1 / 4, "arc_easy": (1 / 3 + 1 / 4 + 1 / 5) / 3, "piqa": 1 / 2, "hellaswag": 1 / 4, "lambada": 0}


def load(folder: Path, name: str, **settings: Any) -> Benchmark:
    return Benchmark(name, folder, **{"metric": METRICS[name], "limit": None, "seed": 1, **settings})


def test_every_task_file_is_compared() -> None:
    assert sorted(ORIGINALS) == sorted(path.stem for path in TASKS.glob("*.yaml"))


@pytest.mark.parametrize("name", sorted(ORIGINALS))
def test_definitions_are_those_of_lm_eval(name: str) -> None:
    original = load_yaml(Path(lm_eval.__file__).parent / "tasks" / ORIGINALS[name])
    ours = load_yaml(TASKS / f"{name}.yaml")
    for key in ("output_type", "doc_to_text", "doc_to_target", "doc_to_choice", "metric_list", "target_delimiter"):
        assert ours.get(key) == original.get(key), key
    # lm-eval loads process_docs from the file's path, so the two are equal in what they do, not in identity
    assert ("process_docs" in ours) == ("process_docs" in original)
    if "process_docs" in ours:
        assert ours["process_docs"].__code__.co_code == original["process_docs"].__code__.co_code


@pytest.mark.parametrize("name", sorted(ORIGINALS))
def test_chance_is_one_over_the_number_of_answers(benchmark_data: Path, name: str) -> None:
    assert load(benchmark_data, name).chance == pytest.approx(CHANCE[name])


def test_prompts_and_answers(benchmark_data: Path) -> None:
    asked = {name: load(benchmark_data, name).requests["loglikelihood"] for name in ORIGINALS}
    assert asked["sciq"][4:6] == [
        ("1 comes after 0.\nQuestion: What is 1?\nAnswer:", " a leaf"),
        ("1 comes after 0.\nQuestion: What is 1?\nAnswer:", " rain"),
    ]
    assert asked["hellaswag"][0] == ("Roof: A man sits. on a roof. He", " pulls up roofing.")
    assert asked["lambada"][0] == ("he knocked and she opened the", " door")
    assert len(asked["arc_easy"]) == 3 + 4 + 5


def test_known_answers_have_known_scores(benchmark_data: Path) -> None:
    piqa = load(benchmark_data, "piqa")
    # "Turn the lid." (13 characters) against "Turn the table over." (20): -14 wins as it is, -15 wins per character
    answers = {"loglikelihood": [(-14.0, False), (-15.0, False), (-1.0, False), (-9.0, False)]}
    found = piqa.results(answers, bootstrap=10)
    assert found["all"]["acc"] == 0.5
    assert found["value"] == found["all"]["acc_norm"] == 0.0
    assert (found["metric"], found["chance"], found["n"]) == ("acc_norm", 0.5, 2)
    assert found["all"]["acc_stderr"] == pytest.approx(math.sqrt(0.5 / 2))  # sample deviation / sqrt(n)


def test_lambada_perplexity_and_its_bootstrap_are_reproducible(benchmark_data: Path) -> None:
    answers = {"loglikelihood": [(-1.0, True), (-3.0, False)]}
    first, second = (load(benchmark_data, "lambada").results(answers, bootstrap=50) for _ in range(2))
    assert first == second
    assert first["value"] == 0.5
    assert first["all"]["perplexity"] == pytest.approx(math.exp(2))
    assert first["all"]["perplexity_stderr"] > 0


def test_one_document_has_no_standard_error(benchmark_data: Path) -> None:
    found = load(benchmark_data, "hellaswag").results({"loglikelihood": [(-1.0, False)] * 4}, bootstrap=10)
    assert found["stderr"] is None


def test_answers_to_other_questions_are_refused(benchmark_data: Path) -> None:
    piqa = load(benchmark_data, "piqa")
    lm = AnsweredLM({"loglikelihood": piqa.requests["loglikelihood"][1:]}, {"loglikelihood": []})
    with pytest.raises(ValueError, match="not those"):
        lm.loglikelihood(piqa.task.instances)


@pytest.mark.parametrize("name", sorted(ORIGINALS))
def test_a_model_answers_every_benchmark(benchmark_data: Path, name: str, model: Decoder, tokenizer: Tokenizer) -> None:
    benchmark = load(benchmark_data, name)
    answerer = Answerer(model, tokenizer, 0, batch_size=4)
    answers = {kind: answerer.answer(kind, asked) for kind, asked in benchmark.requests.items()}
    found = benchmark.results(answers, bootstrap=10)
    assert 0 <= found["value"] <= 1
    direct = evaluate(
        lm=DecoderLM(answerer), task_dict={"tasks": {name: benchmark.task}}, bootstrap_iters=0, log_samples=False
    )
    for key, value in found["all"].items():
        if not key.endswith("_stderr"):
            assert value == direct["results"][name][f"{key},none"]
    assert found == benchmark.results(answers, bootstrap=10)


def test_the_limit_is_a_fixed_sample_spread_over_the_file() -> None:
    rows = pa.table({"n": list(range(1000))})
    chosen = choose_rows(rows, limit=50, seed=1, name="sciq")["n"].to_pylist()
    assert chosen == sorted(set(chosen)) == choose_rows(rows, limit=50, seed=1, name="sciq")["n"].to_pylist()
    assert max(chosen) > 800
    assert chosen != choose_rows(rows, limit=50, seed=2, name="sciq")["n"].to_pylist()
    assert choose_rows(rows, limit=None, seed=1, name="sciq").num_rows == 1000
    assert choose_rows(rows, limit=5000, seed=1, name="sciq").num_rows == 1000


def test_errors_name_what_is_wrong(benchmark_data: Path, tmp_path: Path) -> None:
    with pytest.raises(PicoError, match="no benchmark task 'sciqq'"):
        Benchmark("sciqq", benchmark_data, metric="acc", limit=None, seed=1)
    with pytest.raises(PicoError, match=r"no metric 'accuracy'[\s\S]*choose among: acc, acc_norm"):
        load(benchmark_data, "sciq", metric="accuracy")
    with pytest.raises(PicoError, match=r"sciq.validation.parquet does not exist"):
        load(tmp_path, "sciq")
    (tmp_path / "sciq").mkdir()
    pq.write_table(pa.table({"question": ["Why?"]}), tmp_path / "sciq" / "validation.parquet")
    with pytest.raises(PicoError, match=r"does not fit the task: UndefinedError: 'support'"):
        load(tmp_path, "sciq")
    (tmp_path / "sciq" / "validation.parquet").write_bytes(b"torn")
    with pytest.raises(PicoError, match=r"cannot be read as Parquet"):
        load(tmp_path, "sciq")
