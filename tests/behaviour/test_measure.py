"""Rows of the table: unlike keys, equal numbers every time, and the same from files."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pico.analysis.engine.table import SCHEMA, read_table, write_table
from pico.analysis.metrics import catalogue  # noqa: F401 (metrics of states are registered, too)
from pico.analysis.metrics.registry import BEHAVIOUR, STATUSES, default_metrics, metrics_of
from pico.behaviour.measure import BehaviourTask, measure_behaviour, measure_checkpoint
from pico.behaviour.predictions import NGrams
from pico.behaviour.subject import BehaviourSettings, Compared, Langevin
from pico.checkpoint import Checkpoint, write_checkpoint
from pico.data.preparation.shards import rows_array, write_heldout
from pico.errors import PicoError
from pico.files import write_json
from pico.model import Decoder, load_decoder
from tests.behaviour.conftest import VOCAB, TableScorer

SMALL = BehaviourSettings(
    metrics=tuple(metrics_of(BEHAVIOUR)),
    heldout_rows=4,
    repeated_length=10,
    repeated_rows=3,
    landscape_rows=2,
    trace_probes=2,
    langevin=Langevin(step_size=1e-7, chains=2, burn_in=1, draws=2),
)
POINT = {"run": "tiny", "step": 3, "tokens": 96}


def token_rows(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (n, 71)).astype(np.int32)


def measure(model: Decoder, settings: BehaviourSettings = SMALL) -> list[dict]:
    training = token_rows(1, 8)
    others = [
        Compared(lambda: Decoder(model.config, seed=5), 9, "last"),
        Compared(lambda: Decoder(model.config, seed=6), 9, "previous"),
        Compared(lambda: Decoder(model.config, seed=7), 3, "tiny-seed7", other_run=True),
    ]
    return measure_behaviour(
        model, token_rows(0, 6), **POINT, training_rows=training, ngrams=NGrams(training, VOCAB), compared=others,
        exclude=(0,), settings=settings,
    )  # fmt: skip


def test_every_metric_has_rows_that_the_table_takes(decoder, tmp_path):
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    rows = measure(decoder)
    write_table(tmp_path / "step_00000003.parquet", rows)  # refuses two rows of one key
    assert read_table(tmp_path).num_rows == len(rows)
    known = metrics_of(BEHAVIOUR)
    with_errors = {"hessian_trace", "local_learning_coefficient"}
    assert {row["metric"] for row in rows} == {*known, *(f"{name}_standard_error" for name in with_errors)}
    for row in rows:
        assert set(row) == set(SCHEMA.names)
        assert row["status"] in STATUSES
        assert (row["value"] is not None) == (row["status"] == "ok")
        assert (row["component"], row["data_type"]) == (
            "model",
            known[row["metric"].removesuffix("_standard_error")].data_types[0],
        )
        assert (row["layer"] == -1) == (row["head"] is None)
        assert row["n"] >= 0
        assert isinstance(json.loads(row["params"]), dict)
    by_head = [(row["layer"], row["head"]) for row in rows if row["metric"] == "induction_score"]
    assert by_head == [(layer, head) for layer in range(2) for head in range(4)]
    assert {row["split"] for row in rows if row["metric"] == "memorisation"} == {"train", "val"}
    assert [row["target_step"] for row in rows if row["metric"].startswith("kl_to_") and row["target_step"]] == [
        9,
        9,
        3,
    ]
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())


def test_equal_input_gives_equal_rows_and_another_seed_others(decoder):
    first = measure(decoder)
    assert measure(decoder) == first
    other = measure(decoder, BehaviourSettings(**{**vars(SMALL), "seed": 1}))
    moved = {a["metric"] for a, b in zip(first, other, strict=True) if a["value"] != b["value"]}
    assert moved >= {"induction_score", "hessian_trace", "local_learning_coefficient"}
    assert not moved & {"nll", "kl_to_checkpoint", "critical_sharpness", "memorisation"}


def test_only_what_is_asked_for_and_can_be_had_is_measured(decoder):
    only = BehaviourSettings(metrics=("nll", "hessian_trace"))
    assert {row["metric"] for row in measure(decoder, only)} == {"nll", "hessian_trace", "hessian_trace_standard_error"}
    uniform = TableScorer(np.full((VOCAB, VOCAB), 1 / VOCAB))
    rows = measure_behaviour(uniform, token_rows(0, 6), **POINT)  # no attention, no derivatives, no training rows
    found = {row["metric"]: row["value"] for row in rows}
    assert set(found) == {
        "nll", "nll_by_position", "in_context_score", "expected_calibration_error", "induction_loss_score",
    }  # fmt: skip
    assert found["nll"] == pytest.approx(math.log(VOCAB))
    assert found["in_context_score"] == pytest.approx(0, abs=1e-9)


def test_what_cannot_be_measured_is_named(decoder):
    with pytest.raises(PicoError, match="did you mean 'hessian_trace'"):
        measure(decoder, BehaviourSettings(metrics=("hesian_trace",)))
    with pytest.raises(PicoError, match="'per' is a metric of states") as caught:
        measure(decoder, BehaviourSettings(metrics=("per",)))
    assert caught.value.mend == "name it in analysis.metrics"
    assert set(metrics_of(BEHAVIOUR)) - set(default_metrics(BEHAVIOUR)) == {"local_learning_coefficient"}


def test_a_model_that_has_diverged_gives_statuses(decoder):
    with torch.no_grad():
        decoder.layers[0].swiglu.w_2.weight.fill_(float("nan"))
    rows = measure(decoder)
    statuses = {row["metric"]: row["status"] for row in rows if row["layer"] == -1}
    assert statuses.pop("memorisation") == "ok"  # it has memorised nothing: that is a value
    assert set(statuses.values()) <= {"nonfinite", "n_too_small"}
    assert statuses["nll"] == statuses["hessian_top_eigenvalue"] == statuses["critical_sharpness"] == "nonfinite"


def test_a_checkpoint_is_measured_from_its_files(decoder, tmp_path):
    tokens, folders = tmp_path / "tokens", {}
    for step in (0, 3):
        model = Decoder(decoder.config, seed=step)
        folders[step] = write_checkpoint(
            tmp_path / "checkpoints" / f"step_{step:08d}",
            model=dict(model.named_parameters()),
            config=decoder.config.to_dict(),
            trainer={"tokens": 32 * step},
        ).folder
    training, heldout = token_rows(1, 8), token_rows(0, 6)
    (tokens / "train").mkdir(parents=True)
    pq.write_table(pa.table({"input_ids": rows_array(training)}), tokens / "train" / "train-00000.parquet")
    write_heldout(tokens / "heldout" / "a.parquet", heldout[:2], np.ones(2, np.int64))
    write_heldout(tokens / "heldout" / "b.parquet", heldout[2:], np.ones(4, np.int64))
    write_json(tokens / "tokenizer" / "meta.json", {"eos_id": 0})
    task = BehaviourTask("tiny", folders[3], tokens, {"previous": folders[0]}, {}, SMALL)

    def load(step: int) -> Decoder:
        return load_decoder(Checkpoint(folders[step]))

    expected = measure_behaviour(
        load(3), heldout, **POINT, training_rows=training, ngrams=NGrams(training, VOCAB), exclude=(0,), settings=SMALL,
        compared=[Compared(lambda: load(0), 0, "previous")],
    )  # fmt: skip
    assert measure_checkpoint(task) == expected
