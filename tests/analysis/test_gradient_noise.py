"""Gradients of known noise scale, and loss curves with known spikes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pico.analysis.engine.run import analyze_run
from pico.analysis.engine.table import read_table
from pico.analysis.metrics.catalogue import compute
from pico.analysis.metrics.gradient_noise import gradient_moments, spike_score
from pico.checkpoint import step_name, write_checkpoint
from pico.errors import PicoError

D, SIGNAL, NOISE = 50, 0.25, 4.0  # |G|^2 and tr S: a noise scale of 16
SMALL, LARGE = 4, 32


def of_norms(name: str, small: np.ndarray | list, large: np.ndarray | list, b: float, B: float) -> float | None:
    return compute(name, np.array(small), np.array(large)[:, None], small_batch=b, large_batch=B).value


def gradient_noise_scale(*given) -> float | None:
    return of_norms("gradient_noise_scale", *given)


def gradient_snr(*given) -> float | None:
    return of_norms("gradient_snr", *given)


def norms(steps: int, seed: int = 0, signal: float = SIGNAL) -> tuple[np.ndarray, np.ndarray]:
    """Squared norms of mean gradients: (steps, micro-batches), (steps,)."""
    generator = np.random.default_rng(seed)
    true = np.full(D, np.sqrt(signal / D))
    examples = true + generator.standard_normal((steps, LARGE, D)) * np.sqrt(NOISE / D)
    micro = examples.reshape(steps, LARGE // SMALL, SMALL, D).mean(axis=2)
    return np.sum(micro**2, axis=2), np.sum(micro.mean(axis=1) ** 2, axis=1)


def test_known_noise_is_found() -> None:
    small, large = norms(3000)
    signal, noise = gradient_moments(small, large, SMALL, LARGE)
    assert signal == pytest.approx(SIGNAL, rel=0.03)
    assert noise == pytest.approx(NOISE, rel=0.03)
    assert gradient_noise_scale(small, large, SMALL, LARGE) == pytest.approx(NOISE / SIGNAL, rel=0.05)
    assert gradient_snr(small, large, SMALL, LARGE) == pytest.approx(LARGE * SIGNAL / NOISE, rel=0.05)


def test_expectations_give_exact_moments() -> None:
    small, large = [SIGNAL + NOISE / SMALL], [SIGNAL + NOISE / LARGE]
    assert gradient_moments(small, large, SMALL, LARGE) == pytest.approx((SIGNAL, NOISE))


def test_steps_are_averaged_before_the_division() -> None:
    small, large = norms(2000, seed=1, signal=0.05)
    one_by_one = [gradient_noise_scale(a[None], b[None], SMALL, LARGE) for a, b in zip(small, large, strict=True)]
    assert any(value is None for value in one_by_one)  # single steps do give a negative |G|^2
    moments = np.array([gradient_moments(a[None], b[None], SMALL, LARGE) for a, b in zip(small, large, strict=True)])
    expected = moments[:, 1].mean() / moments[:, 0].mean()
    assert gradient_noise_scale(small, large, SMALL, LARGE) == pytest.approx(expected)


def test_pure_signal_and_pure_noise() -> None:
    assert gradient_noise_scale([[2.0]], [2.0], 1, 8) == 0
    assert gradient_snr([[2.0]], [2.0], 1, 8) is None
    assert gradient_noise_scale([[8.0]], [1.0], 1, 8) is None
    for batches in ((4, 4), (0, 4), (8, 4)):
        with pytest.raises(ValueError, match="batch sizes"):
            gradient_moments([1.0], [1.0], *batches)
    with pytest.raises(ValueError, match="shapes"):
        gradient_moments([1.0, 2.0], [1.0], 1, 4)


def test_spikes_are_counted() -> None:
    generator = np.random.default_rng(0)
    loss = 5 - 0.002 * np.arange(300) + 0.01 * generator.standard_normal(300)
    assert spike_score(loss, window=50) == 0
    loss[[100, 101, 250]] += 1.0
    assert spike_score(loss, window=50) == 3 / 250
    loss[200] = np.nan
    assert spike_score(loss, window=50) == 4 / 250
    assert spike_score(np.full(100, 2.0)) == 0
    assert spike_score(1000 * loss + 7, window=50) == 4 / 250
    assert spike_score(loss[:50], window=50) is None


def test_why_there_is_no_value_is_said() -> None:
    given = {"small_batch": 1, "large_batch": 8}
    assert compute("gradient_noise_scale", [[8.0, 8.0]], [[1.0]], **given).status == "n_too_small"
    assert compute("gradient_snr", [[2.0]], [[2.0]], **given).status == "n_too_small"
    assert compute("gradient_noise_scale", [[0.0]], [[0.0]], **given).status == "zero"
    assert compute("gradient_noise_scale", [[np.inf]], [[1.0]], **given).status == "nonfinite"
    assert compute("loss_spike_score", np.ones((10, 1))).status == "n_too_small"
    with pytest.raises(PicoError, match="small_batch"):
        compute("gradient_snr", [[1.0]], [[1.0]], small_batch=4, large_batch=4)


def test_a_trained_run_has_them_in_its_table(tmp_path: Path) -> None:
    """Norms as training captures them, averaged over checkpoints before the division; the curve up to each step."""
    run, table = tmp_path / "run", tmp_path / "table"
    steps, metadata = (1, 2, 3, 40), {"small": "64", "large": "256"}
    random = np.random.default_rng(0)
    norms = {step: {f"layers.0.w_{i}": torch.tensor(random.uniform(1, 2, 5)) for i in range(2)} for step in steps}
    for step in steps:
        write_checkpoint(
            run / "checkpoints" / step_name(step),
            model={},
            config={"n_layers": 0},
            trainer={"tokens": step},
            dynamics={"val_gradient_norms": norms[step]},
            dynamics_metadata={"val_gradient_norms": metadata},
        )
    losses = ["2.0"] * 40
    losses[34] = ""
    lines = [f"{step},{loss}" for step, loss in enumerate(losses, start=1)]
    (run / "training.csv").write_text("\n".join(["step,train_loss", *lines]) + "\n")
    analyze_run(run, "one", ["gradient_noise_scale", "gradient_snr", "loss_spike_score", "per"], ["simple"], table)
    rows = {(row["step"], row["metric"], row["split"]): row for row in read_table(table).to_pylist()}
    assert {metric for _, metric, _ in rows} == {"gradient_noise_scale", "gradient_snr", "loss_spike_score"}
    squares = np.stack([sum(tensor.numpy() for tensor in norms[step].values()) for step in steps])
    expected = compute("gradient_noise_scale", squares[:, :-1], squares[:, -1:], small_batch=64, large_batch=256)
    found = rows[40, "gradient_noise_scale", "val"]
    assert (found["value"], found["status"], found["n"], found["p"]) == (expected.value, expected.status, 4, 4)
    assert json.loads(found["params"]) == {"small_batch": 64, "large_batch": 256, "checkpoints": 4}
    assert rows[40, "loss_spike_score", None]["value"] == 1 / 8
    assert rows[3, "loss_spike_score", None]["status"] == "n_too_small"
