"""Stage `analyze` as a flow, on the lab: what it publishes, and what a second run and a missing model give."""

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows.analyze import behaviour_settings
from pico.analysis.engine.run import analyze_run, find_checkpoints
from pico.analysis.engine.table import read_table
from pico.behaviour.measure import BehaviourTask, measure_checkpoint
from pico.checkpoint import Checkpoint
from pico.config import load_params
from pico.files import sha256_file, write_json
from pico.train.run import pretrain
from tests.flows.conftest import run_python
from tests.train.conftest import make_spec, make_tokens


def trained(tokens: Path, runs: Path) -> Path:
    """The model of a short run in this process."""
    spec = make_spec()
    layers = ["attention.v_proj", "attention.o_proj", "swiglu.w_2"]
    captured = spec.learning_dynamics.model_copy(update={"layers": layers})
    return pretrain(dataclasses.replace(spec, learning_dynamics=captured), tokens, runs=runs) / "model"


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_the_flow_publishes_what_the_library_gives(
    lab: Path, prefect_api: Callable[[str, dict[str, Any]], Any], tmp_path: Path
) -> None:
    params = load_params(lab / "params.yaml")
    model, scale = params.suite.models[0], params.suite.scale
    source = lab / "data" / "models" / scale / model
    tokens = make_tokens(lab / "data" / "tokens")
    write_json(tokens / "tokenizer" / "meta.json", {"eos_id": 0})
    shutil.copytree(trained(tokens, tmp_path / "runs"), source)

    def behaviour(checkpoint: Checkpoint) -> partial:
        last = find_checkpoints(source)[-1].folder
        targets = {} if checkpoint.folder == last else {"last": last}
        settings = behaviour_settings(params.behaviour)
        return partial(measure_checkpoint, BehaviourTask(model, checkpoint.folder, tokens, targets, settings=settings))

    done = run_python(lab, "-m", "flows.analyze", "--model", model)
    assert done.returncode == 0, done.stderr
    expected = tmp_path / "expected"
    analyze_run(source, model, params.analysis.metrics, params.analysis.components, expected, more=behaviour)
    assert hashes(lab / "data" / "analysis" / scale / model) == hashes(expected)
    assert {"debiased_cka", "induction_score", "critical_sharpness"} <= set(read_table(expected)["metric"].to_pylist())
    artifacts = prefect_api("artifacts/filter", {"artifacts": {"key": {"any_": [f"analyze-{model}"]}}})
    assert "debiased_cka" in artifacts[0]["data"]


@pytest.mark.slow
def test_a_model_without_checkpoints_is_named(lab: Path) -> None:
    model = load_params(lab / "params.yaml").suite.models[-1]
    failed = run_python(lab, "-m", "flows.analyze", "--model", model)
    assert failed.returncode == 1
    assert f"{model} holds no finished checkpoints" in failed.stderr
    assert "Traceback" not in failed.stderr
