"""The disk that `pico plan` foresees is what a real run leaves."""

import pytest

from pico.checkpoint import checkpoints
from pico.config import Checkpoints, LearningDynamics, Schedule, Training
from pico.model import DecoderConfig
from pico.optimizers import AdamW
from pico.plan.resources import run_disk
from pico.train.loop import train
from pico.train.spec import RunSpec, run_identity

from .conftest import make_tokens


def test_disk_is_what_a_real_run_leaves(tmp_path):
    spec = RunSpec(
        model="small",
        seed=1,
        decoder=DecoderConfig(64, 2, 300, 16, 4, 2, 160),
        training=Training(steps=3, batch_size=8, micro_batch_size=8, workers=1, threads_per_worker=1, device="cpu",
                          precision="fp32", compile=False, gradient_clip=1.0, eval_every=3),
        optimizer=AdamW(lr=0.01, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1),
        schedule=Schedule(kind="linear", warmup_steps=1, final_fraction=0.1),
        checkpoints=Checkpoints(every=2, rescue_seconds=1000.0),
        learning_dynamics=LearningDynamics(layers=["attention.v_proj", "swiglu.w_2", "embedding_proj"], batch_size=9,
                                           positions=4),
    )  # fmt: skip
    tokens, work = make_tokens(tmp_path / "tokens"), tmp_path / "work"
    work.mkdir()
    train(spec, tokens, work, run_identity(spec, tokens))
    disk, kept = run_disk(spec, 16), checkpoints(work / "model")
    assert disk.checkpoints == len(kept)

    def size(pattern: str) -> int:
        return sum(path.stat().st_size for one in kept for path in one.folder.glob(pattern))

    assert size("model.safetensors") == pytest.approx(disk.weights, rel=0.02)
    assert size("learning_dynamics/*") == pytest.approx(disk.dynamics, rel=0.02)
    assert size("optimizer.safetensors") == pytest.approx(disk.states, rel=0.02)
