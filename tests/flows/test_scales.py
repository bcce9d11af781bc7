"""`pico scale` writes what DVC's own Hydra composition writes, or refuses and leaves params.yaml alone."""

import subprocess
import sys
from pathlib import Path

import pytest
from lab_project import REPOSITORY, clean_environment
from ruamel.yaml import YAML

from pico.cli.settings import compose, scale_names, write_params
from pico.errors import PicoError


def test_every_scale_composes_and_fits() -> None:
    assert {"smoke", "laptop", "gpu", "paper", "pico-1b"} <= set(scale_names(REPOSITORY))
    for name in scale_names(REPOSITORY):
        assert compose(REPOSITORY, name, [])[0].suite.scale == name


def test_every_setting_can_be_overridden_by_its_name_alone() -> None:
    """Hydra, and so `-S KEY=VALUE`, knows only what conf/ names."""
    for path in sorted((REPOSITORY / "conf" / "scale").glob("*.yaml")):
        params, text = compose(REPOSITORY, path.stem, [])
        assert not missing(YAML(typ="safe").load(text), params.model_dump(mode="json"))


def missing(named: dict, all_there_are: dict, prefix: str = "") -> list[str]:
    """The keys that have a value, but no place in `named`."""
    found = []
    for key, value in all_there_are.items():
        if key not in named:
            found.append(prefix + key)
        elif isinstance(value, dict):
            found += missing(named[key], value, f"{prefix}{key}.")
    return found


def test_the_small_corpus_is_a_part_of_the_embedded_one() -> None:
    small, embedded = (compose(REPOSITORY, scale, [])[0].corpus.sources for scale in ("smoke", "laptop"))
    assert 1 < len(small) < len(embedded)
    assert all(source in embedded for source in small)


def test_the_bytes_are_those_of_dvc_exp_run(project: Path) -> None:
    def call(*command: str) -> None:
        subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)

    environment = {**clean_environment(), "HOME": str(project), "GIT_CONFIG_NOSYSTEM": "1"}
    dvc = (sys.executable, "-m", "dvc")
    (project / "dvc.yaml").write_text("stages:\n  none:\n    cmd: 'true'\n    params: [seed]\n")
    call("git", "init", "-q")
    call(*dvc, "init", "-q")
    call(*dvc, "config", "hydra.enabled", "True")
    call("git", "add", ".")
    call("git", "-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "start")
    call(*dvc, "exp", "run", "-q", "-S", "scale=smoke", "-S", "optimizer.lr=0.01")
    params, text = compose(project, "smoke", ["optimizer.lr=0.01"])
    assert text.encode() == (project / "params.yaml").read_bytes()
    assert params.optimizer.lr == 0.01


def test_an_unknown_scale_is_refused_with_those_that_exist() -> None:
    with pytest.raises(PicoError, match=r"(?s)no scale 'smok'.*laptop, paper, pico-1b, smoke"):
        compose(REPOSITORY, "smok", [])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [("optimizer.lrr=1", "optimizer.lrr"), ("training.workers=3", "training.workers"), ("lr==", "lr")],
)
def test_a_bad_override_is_refused_by_name(override: str, complaint: str) -> None:
    with pytest.raises(PicoError, match=complaint):
        compose(REPOSITORY, "smoke", [override])


def test_equal_settings_leave_the_file_untouched(project: Path) -> None:
    text = compose(project, "smoke", [])[1]
    write_params(project, text)
    before = (project / "params.yaml").stat()
    assert not write_params(project, text)
    assert (project / "params.yaml").stat().st_mtime_ns == before.st_mtime_ns
