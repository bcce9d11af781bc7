"""A tiny corpus of token rows, a tiny run over it, and ways to compare what runs leave."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pico.config import Checkpoints, LearningDynamics, Schedule, Training
from pico.files import sha256_file, write_json
from pico.model import DecoderConfig
from pico.optimizers import SGD, AdamW, Lion, Muon, OptimizerSettings
from pico.train.curve import Curve
from pico.train.run import pretrain
from pico.train.spec import RunSpec

SEQ_LEN, VOCAB = 16, 37
collect_ignore = [] if torch.cuda.is_available() else ["test_cuda.py"]


def write_rows(path: Path, rows: np.ndarray, **columns: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lists = pa.array(rows.tolist(), type=pa.list_(pa.int32()))
    pq.write_table(pa.table({"input_ids": lists, **columns}), path)


def make_tokens(folder: Path, *, n_rows: int = 200, seed: int = 0) -> Path:
    """A folder of the layout of data/tokens; most ids repeat their predecessor, so there is something to learn."""
    random = np.random.default_rng(seed)

    def rows(count: int) -> np.ndarray:
        ids = random.integers(1, VOCAB, (count, SEQ_LEN + 1))
        for column in range(1, SEQ_LEN + 1):
            repeat = random.random(count) < 0.6
            ids[repeat, column] = ids[repeat, column - 1]
        return ids.astype(np.int32)

    write_rows(folder / "train" / "train-00000-of-00002.parquet", rows(n_rows // 2))
    write_rows(folder / "train" / "train-00001-of-00002.parquet", rows(n_rows - n_rows // 2))
    for domain, count in (("code", 3), ("speech", 6)):
        own = rows(count)
        for part in ("heldout", "tinsy"):
            write_rows(folder / part / f"{domain}.parquet", own, n_bytes=np.full(count, 40, np.int64))
    write_json(folder / "provenance.json", {"seed": seed})
    return folder


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return make_tokens(tmp_path / "tokens")


def make_spec(**training: object) -> RunSpec:
    """A run of 12 updates of a model of two layers; `training` overrides its settings."""
    values = {"steps": 12, "batch_size": 8, "micro_batch_size": 4, "workers": 1, "threads_per_worker": 1,
              "device": "cpu", "precision": "fp32", "compile": False, "gradient_clip": 1.0, "eval_every": 5,
              **training}  # fmt: skip
    return RunSpec(
        model="tiny",
        seed=1,
        decoder=DecoderConfig(16, 2, VOCAB, SEQ_LEN, 2, 1, 32),
        training=Training(**values),
        optimizer=AdamW(lr=0.01, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1),
        schedule=Schedule(kind="linear", warmup_steps=2, final_fraction=0.1),
        checkpoints=Checkpoints(every=5, rescue_seconds=1000.0),
        learning_dynamics=LearningDynamics(layers=["attention.v_proj", "swiglu.w_2"], batch_size=12, positions=4),
    )


@pytest.fixture
def spec() -> RunSpec:
    return make_spec()


def with_rescues(spec: RunSpec, seconds: float) -> RunSpec:
    return dataclasses.replace(spec, checkpoints=spec.checkpoints.model_copy(update={"rescue_seconds": seconds}))


OPTIMIZERS: dict[str, OptimizerSettings] = {
    "adamw": AdamW(lr=0.01, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1),
    "muon": Muon(lr=0.01, momentum=0.9, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1),
    "sgd": SGD(lr=0.3, momentum=0.9, weight_decay=0.1),
    "lion": Lion(lr=0.002, beta1=0.9, beta2=0.95, weight_decay=0.1),
}
"""Settings of each optimizer at which the tiny run learns."""


def with_optimizer(spec: RunSpec, name: str) -> RunSpec:
    return dataclasses.replace(spec, optimizer=OPTIMIZERS[name])


def contents(folder: Path) -> dict[str, str]:
    """sha256 by relative path of all that a folder holds."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def curve(work: Path) -> list:
    return Curve(work / "curve.jsonl").read()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Tokens, and the folder of a whole run on them; nobody writes there."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tokens = make_tokens(folder / "tokens")
    return tokens, pretrain(make_spec(), tokens, runs=folder / "runs")
