"""A status where there is no value, never NaN; and refusals of wrong calls."""

import math

import numpy as np
import pytest
from metric_cases import LENGTHS, REPRESENTATIONS, SCALE_FREE, gaussian, value

from pico.analysis.metrics.catalogue import METRICS, STATES, compute, metrics_of
from pico.errors import PicoError

# Degenerate input -----------------------------------------------------------------------------------------------------

DEGENERATE = {
    "zero": np.zeros((12, 5)),
    "constant": np.full((12, 5), 0.1),
    "constant rows": np.outer(np.ones(12), [1.0, 2.0, -3.0, 0.1, 1e6]),
    "rank 1": np.outer(np.arange(12.0), [1.0, 2.0, 3.0]),
    "rank 2": gaussian(0, 12, 2) @ gaussian(1, 2, 5),
    "wide, rank 2": gaussian(0, 12, 2) @ gaussian(1, 2, 30),
    "noise on a constant": 1e6 + 1e-10 * gaussian(0, 12, 5),
    "equal rows but one": np.vstack([np.ones((11, 5)), np.arange(5.0)]),
    "one row": gaussian(0, 1, 5),
    "one column": gaussian(0, 12, 1),
    "one entry": np.array([[3.0]]),
    "two rows": gaussian(0, 2, 5),
    "no rows": np.zeros((0, 5)),
    "no columns": np.zeros((5, 0)),
    "vector": gaussian(0, 12),
    "three axes": gaussian(0, 3, 4, 5),
    "infinite": np.array([[1.0, np.inf], [2.0, 3.0], [4.0, 5.0], [0.0, 1.0]]),
    "nan": np.array([[1.0, np.nan], [2.0, 3.0], [4.0, 5.0], [0.0, 1.0]]),
    "all infinite": np.full((12, 5), -np.inf),
    "huge": gaussian(0, 12, 5) * 1e300,
    "tiny": gaussian(0, 12, 5) * 1e-300,
    "denormal": np.full((12, 5), 5e-324) * np.sign(gaussian(0, 12, 5)),
    "float32 edge": gaussian(0, 12, 5).astype(np.float32) * np.float32(1e38),
    "one row differs": np.eye(12, 5)[:, :1],
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("name", metrics_of(STATES))
@pytest.mark.filterwarnings("error")
def test_degenerate_input_has_a_status_and_never_nan(name: str, kind: str) -> None:
    x = DEGENERATE[kind]
    metric = METRICS[name]
    regular = gaussian(1, *(x.shape if x.ndim > 1 else (len(x), 1)))
    for operands in ((x, x), (x, regular), (regular, x)) if metric.target else ((x,),):
        found = compute(name, *operands)
        assert found.status in ("ok", "zero", "rank_deficient", "n_too_small", "nonfinite")
        assert (found.value is None) == (found.status not in ("ok", "rank_deficient"))
        assert found.value is None or math.isfinite(found.value)
        if kind in ("infinite", "nan", "all infinite"):
            assert found.status == "nonfinite" or METRICS[name].min_rows > len(x)
    if kind in ("zero", "constant", "constant rows") and metric.target == "last":
        assert compute(name, x, regular).status == "zero"


@pytest.mark.parametrize("factor", [1e300, 1e200, 1e-200, 1e-300])
def test_extreme_scales_are_measured_as_any_other(factor: float) -> None:
    x, y = gaussian(0, 20, 5), gaussian(1, 20, 6)
    for name in SCALE_FREE:
        assert value(name, factor * x) == pytest.approx(value(name, x), rel=1e-6)
    for name in LENGTHS:
        assert value(name, factor * x) == pytest.approx(factor * value(name, x), rel=1e-6)
    for name in REPRESENTATIONS:
        assert value(name, factor * x, y) == pytest.approx(value(name, x, y), rel=1e-9)
        assert value(name, y, factor * x) == pytest.approx(value(name, y, x), rel=1e-9)


@pytest.mark.parametrize("name", ["cca_mean", "svcca", "pwcca"])
def test_cca_refuses_what_would_always_be_1(name: str) -> None:
    full = {"variance": 1.0} if name == "svcca" else {}
    assert compute(name, gaussian(0, 12, 11), gaussian(1, 12, 3), **full).status == "n_too_small"
    assert compute(name, gaussian(0, 12, 3), gaussian(1, 12, 40), **full).status == "n_too_small"
    assert compute(name, gaussian(0, 12, 10), gaussian(1, 12, 3), **full).status == "ok"


# Wrong calls ----------------------------------------------------------------------------------------------------------


def test_wrong_calls_say_what_is_right() -> None:
    x = gaussian(0, 10, 4)
    with pytest.raises(PicoError, match="did you mean 'linear_cka'"):
        compute("linear_ckaa", x, x)
    with pytest.raises(PicoError, match="needs two tensors"):
        compute("linear_cka", x)
    with pytest.raises(PicoError, match="looks at one tensor"):
        compute("per", x, x)
    with pytest.raises(PicoError, match="10 rows but Y has 9"):
        compute("linear_cka", x, x[:9])
    with pytest.raises(PicoError, match="4 columns but Y has 3"):
        compute("relative_change", x, x[:, :3])
    with pytest.raises(PicoError, match="no setting"):
        compute("near_zero_fraction", x, limit=3)


@pytest.mark.parametrize(
    ("name", "setting", "wrong"),
    [
        ("minibatch_cka", "batch", 3),
        ("rbf_cka", "bandwidth", 0),
        ("svcca", "variance", 1.5),
        ("rsa", "correlation", "kendall"),
        ("mutual_knn", "k", 0),
        ("rankme", "eps", -1e-7),
        ("alpha_req", "last", 4),
        ("powerlaw_alpha", "xmin", 0),
        ("powerlaw_d", "xmin", -1),
        ("powerlaw_k", "xmin", -1),
        ("near_zero_fraction", "threshold", -1),
        ("dead_units", "threshold", math.nan),
    ],
)
def test_settings_out_of_range_are_refused(name: str, setting: str, wrong: object) -> None:
    x = gaussian(0, 20, 8)
    with pytest.raises(PicoError, match=f"{name}'.*{setting}(.|\\n)*must be"):
        compute(name, *[x] * (1 if METRICS[name].target is None else 2), **{setting: wrong})
