"""Stage `analyze` as a flow, on the lab: what it publishes, and what a second run and a missing model give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import write_run

from pico.analysis.engine import analyze_run
from pico.config import load_params
from pico.files import sha256_file
from tests.flows.conftest import run_python


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_the_flow_publishes_what_the_library_gives(
    lab: Path, prefect_api: Callable[[str, dict[str, Any]], Any], tmp_path: Path
) -> None:
    params = load_params(lab / "params.yaml")
    model, scale = params.suite.models[0], params.suite.scale
    source = lab / "data" / "models" / scale / model
    write_run(source, steps=(0, 1))
    done = run_python(lab, "-m", "flows.analyze", "--model", model)
    assert done.returncode == 0, done.stderr
    analyze_run(source, model, params.analysis.metrics, params.analysis.components, tmp_path)
    assert hashes(lab / "data" / "analysis" / scale / model) == hashes(tmp_path)
    artifacts = prefect_api("artifacts/filter", {"artifacts": {"key": {"like_": f"analyze-{model}"}}})
    assert "debiased_cka" in artifacts[0]["data"]


@pytest.mark.slow
def test_a_model_without_checkpoints_is_named(lab: Path) -> None:
    model = load_params(lab / "params.yaml").suite.models[-1]
    failed = run_python(lab, "-m", "flows.analyze", "--model", model)
    assert failed.returncode == 1
    assert f"{model} holds no finished checkpoints" in failed.stderr
    assert "Traceback" not in failed.stderr
