"""Stage `benchmark` as a flow: what it publishes, with Ray and without, undisturbed and resumed."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from flows.benchmark import benchmark
from flows.stage import Stage
from pico.checkpoint import step_name, write_checkpoint
from pico.config import ExpectationSuite, load_params
from pico.data.preparation.tokenizer import save_tokenizer, train_bpe
from pico.errors import PicoError
from pico.evaluation.parts import evaluate_part
from pico.files import read_json, write_json
from pico.model import Decoder, DecoderConfig

PARAMS = Path(__file__).parents[2] / "params.yaml"
STEPS = (0, 1, 2, 4, 8)


class InProcess(Stage):
    """A stage whose work is not spread."""

    def ray(self, wanted: bool = True) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with checkpoints, tokens and two benchmarks, as the stages before leave them."""
    monkeypatch.chdir(tmp_path)
    config = DecoderConfig(
        d_model=16, n_layers=1, vocab_size=300, max_seq_len=32, attention_n_heads=2, attention_n_kv_heads=1,
        activation_hidden_dim=32,
    )  # fmt: skip
    for step in STEPS:
        weights = dict(Decoder(config, seed=step).state_dict())
        folder = Path("data/models/laptop/tiny/checkpoints") / step_name(step)
        write_checkpoint(folder, model=weights, config=config.to_dict(), trainer={"step": step, "tokens": 256 * step})
    made = train_bpe(["the answer to the question, and another question"], 280)
    save_tokenizer(made, Path("data/tokens/tokenizer"), kind="bpe", eos_token="<|endoftext|>")
    Path("data/tokens/heldout").mkdir()
    for number, domain in enumerate(("code", "speeches")):
        ids = np.random.default_rng(number).integers(0, 280, (3, 33)).tolist()
        table = pa.table({"input_ids": pa.array(ids, pa.list_(pa.int32())), "n_bytes": [60, 61, 62]})
        pq.write_table(table, f"data/tokens/heldout/{domain}.parquet")
    piqa = [{"goal": f"Open jar {n}.", "sol1": "Turn it.", "sol2": "Hit it twice.", "label": n % 2} for n in range(8)]
    texts = [{"text": f"he opened jar {n} and shut the door"} for n in range(8)]
    for name, rows in (("piqa/validation", piqa), ("lambada/test", texts)):
        (path := Path(f"data/benchmarks/{name}.parquet")).parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    return tmp_path


def stage(kind: type[Stage] = InProcess, **evaluation: Any) -> Stage:
    """The shipped settings with two benchmarks, three checkpoints and six examples each."""
    params = load_params(PARAMS)
    tasks = [entry for entry in params.benchmarks.tasks if entry.name in ("piqa", "lambada")]
    changes = {"checkpoints": 3, "limit": 6, **evaluation}
    return kind(
        "benchmark",
        params.model_copy(update={
            "benchmarks": params.benchmarks.model_copy(update={"tasks": tasks}),
            "evaluation": params.evaluation.model_copy(update=changes),
        }),
        "tiny",
    )  # fmt: skip


def run(made: Stage) -> bytes:
    """The published bytes."""
    flow(name="benchmark")(benchmark)(made)
    return Path("data/evaluation/laptop/tiny/results.json").read_bytes()


@pytest.mark.slow
def test_results_are_those_of_the_contract_and_the_same_with_ray_and_without(server: None, project: Path) -> None:
    published = run(stage())
    results = read_json(project / "data/evaluation/laptop/tiny/results.json")
    assert [(entry["step"], entry["tokens"]) for entry in results] == [(0, 0), (2, 512), (8, 2048)]
    for entry in results:
        assert set(entry["heldout"]) == {"all", "code", "speeches"}
        assert entry["heldout"]["all"]["tokens"] == 2 * 3 * 32
        assert entry["heldout"]["all"]["bytes"] == 2 * 183
        assert entry["heldout"]["all"]["perplexity"] == pytest.approx(300, rel=0.2)  # hardly more than a guess
        assert {name: (found["n"], found["chance"]) for name, found in entry["benchmarks"].items()} == {
            "piqa": (6, 0.5), "lambada": (6, 0.0),
        }  # fmt: skip
    assert run(stage(Stage)) == published
    with get_client(sync_client=True) as client:
        assert "benchmark-tiny" in {artifact.key for artifact in client.read_artifacts()}
    assert not list(Path("runs/benchmark").iterdir())


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_to_the_same_bytes(
    server: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(stage())
    Path("data/evaluation/laptop/tiny/results.json").unlink()
    calls: list[Path] = []
    real = evaluate_part

    def breaks_at_the_fifth(checkpoint: Path, *rest: Any) -> Any:
        calls.append(checkpoint)
        if len(calls) == 5:
            raise OSError("the disk went away")
        return real(checkpoint, *rest)

    monkeypatch.setattr("flows.benchmark.evaluate_part", breaks_at_the_fifth)
    with pytest.raises(OSError, match="went away"):
        run(stage())
    assert not Path("data/evaluation/laptop/tiny/results.json").exists()
    assert run(stage()) == undisturbed
    assert len(calls) == 5 + (9 - 4)


@pytest.mark.slow
def test_a_suite_of_the_user_is_shown_beside_the_results_and_stops_the_stage_where_it_fails(
    server: None, project: Path
) -> None:
    def with_suite(limit: float) -> Stage:
        kwargs = {"column": "value", "min_value": 0, "max_value": limit}
        write_json(
            Path("mine.json"), {"expectations": [{"type": "expect_column_values_to_be_between", "kwargs": kwargs}]}
        )
        made = stage()
        gates = made.params.gates.model_copy(update={"suites": [ExpectationSuite(file="mine.json", on="results")]})
        return InProcess("benchmark", made.params.model_copy(update={"gates": gates}), "tiny")

    Path("dvc.yaml").write_text("stages: {benchmark: {deps: []}}")
    with pytest.raises(PicoError, match=r"mine\.json is no dep of stage benchmark"):
        run(with_suite(1e6))
    Path("dvc.yaml").write_text("stages: {benchmark: {deps: [mine.json]}}")
    without = run(stage())
    assert run(with_suite(1e6)) == without
    published = Path("data/evaluation/laptop/tiny")
    assert "✓ passed" in (published / "data_docs/suite-mine.html").read_text()
    with pytest.raises(PicoError, match=r"1 expectations on results of tiny failed[\s\S]*runs/benchmark.*index\.html"):
        run(with_suite(10))
    assert run(stage()) == without  # and what was answered before the failure is used
    assert not (published / "data_docs").exists()


@pytest.mark.slow
def test_a_model_without_checkpoints_is_named(server: None, project: Path) -> None:
    made = stage()
    with pytest.raises(PicoError, match="small has no checkpoint"):
        flow(name="benchmark")(benchmark)(InProcess("benchmark", made.params, "small"))
