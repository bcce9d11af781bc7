"""Spreading a pure function gives the same results in-process and on Ray, and errors come through as they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pico.errors import PicoError
from pico.spread import spread


def gram(seed: int, size: int) -> tuple[int, bytes]:
    """A product whose bytes depend on the number of threads, were it not fixed."""
    matrix = np.random.default_rng(seed).standard_normal((size, size))
    tensor = torch.from_numpy(matrix).float()
    return torch.get_num_threads(), (tensor @ tensor.T).numpy().tobytes()


def refuse(number: int) -> int:
    if number == 3:
        raise PicoError("three is refused", where="here", mend="take four")
    return number


def test_in_process_runs_in_order_with_the_threads_asked_for():
    before = torch.get_num_threads()
    results = list(spread(gram, [(seed, 64) for seed in range(4)], threads=1))
    assert [index for index, _ in results] == [0, 1, 2, 3]
    assert all(threads == 1 for _, (threads, _) in results)
    assert torch.get_num_threads() == before


def test_an_error_comes_through_in_process():
    with pytest.raises(PicoError, match="three is refused"):
        list(spread(refuse, [(number,) for number in range(5)]))


@pytest.mark.slow
def test_ray_gives_the_same_bytes_and_the_same_errors():
    import ray

    calls = [(seed, 300) for seed in range(6)]
    alone = dict(spread(gram, calls))
    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}  # so that workers can import this module
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=here)
    try:
        assert dict(spread(gram, calls)) == alone
        assert dict(spread(gram, calls, workers=1)) == alone
        with pytest.raises(PicoError, match="three is refused") as caught:
            list(spread(refuse, [(number,) for number in range(5)]))
        assert caught.value.mend == "take four"
    finally:
        ray.shutdown()
