"""Training on Ray: the same bytes as in-process, our errors told once, a dead worker survived."""

import pytest

from pico.errors import PicoError
from pico.train.run import pretrain

from .conftest import contents, make_spec, make_tokens

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield make_tokens(tmp_path_factory.mktemp("ray") / "tokens")
    ray.shutdown()


def test_one_worker_leaves_the_bytes_of_this_process(tokens, tmp_path):
    events: list = []
    on_ray = pretrain(make_spec(), tokens, runs=tmp_path / "ray", on_ray=True, show=events.append)
    here = pretrain(make_spec(), tokens, runs=tmp_path / "here")
    assert contents(on_ray / "model") == contents(here / "model")
    assert [event["step"] for event in events if "step" in event][-1] == 12


def test_an_error_of_ours_comes_back_as_it_was(tokens, tmp_path):
    spec = make_spec()
    layers = spec.learning_dynamics.model_copy(update={"layers": ["nonsense"]})
    object.__setattr__(spec, "learning_dynamics", layers)
    with pytest.raises(PicoError, match="no layer is named 'nonsense'"):
        pretrain(spec, tokens, runs=tmp_path, on_ray=True)
