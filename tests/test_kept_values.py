"""A kept value is served only where the same code, libraries and device would compute it again.

Sidecars and working folders of the analysis, behaviour, parts of a benchmark, captured states: all their keys hold what
pico.identity says.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_runs import write_run

from pico import identity
from pico.analysis.engine.run import analysis_folder, analyze_run
from pico.analysis.engine.sidecar import checkpoint_folder, metric_fingerprint
from pico.analysis.engine.table import read_table
from pico.analysis.metrics.catalogue import METRICS
from pico.behaviour.measure import behaviour_identity
from pico.behaviour.subject import BehaviourSettings
from pico.capture.places import Place
from pico.capture.run import Settings, capture_identity
from pico.checkpoint import checkpoints
from pico.data.preparation.shards import rows_array
from pico.evaluation.parts import answers_identity
from pico.files import fingerprint, write_json

Keys = dict[str, Callable[[], str]]
"""Kind of kept value -> what gives the key of one."""


@pytest.fixture(autouse=True)
def remembered() -> Iterator[None]:
    yield
    forget()


def forget() -> None:
    for function in (identity.code, identity.libraries, identity.identity):
        function.cache_clear()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "tiny", steps=(0, 1))
    return tmp_path / "tiny"


@pytest.fixture
def keys(run: Path, tmp_path: Path) -> Keys:
    tokens = tmp_path / "tokens"
    for name in ("train", "heldout"):
        (tokens / name).mkdir(parents=True)
        pq.write_table(pa.table({"input_ids": rows_array(np.zeros((2, 5), np.int32))}), tokens / name / "a.parquet")
    write_json(tokens / "provenance.json", {})
    found = checkpoints(run)

    def answers(device: str = "cpu") -> str:
        return fingerprint(answers_identity(found, tokens, {"sciq": {}}, device=device, batch_size=2))

    return {
        "sidecars": lambda: str(checkpoint_folder(tmp_path, "tiny", found[0])),
        "values of per": lambda: metric_fingerprint(METRICS["per"]),
        "analysis": lambda: str(analysis_folder(run, "tiny", ["per"], ["simple"], tmp_path)),
        "behaviour": lambda: fingerprint(behaviour_identity(tokens, BehaviourSettings())),
        "answers": answers,
        "states": lambda: fingerprint(capture_identity(Place("tiny", "pico", {0: found[0].folder}), Settings())),
    }


CODE = {
    "sidecars": (
        ["pico/checkpoint.py", "pico/analysis/engine/blocks.py", "pico/analysis/metrics/matrix.py"],
        ["pico/analysis/metrics/sparsity.py", "pico/analysis/engine/run.py", "pico/analysis/listing.py"],
    ),
    "values of per": (
        ["pico/analysis/metrics/spectra.py", "pico/analysis/metrics/registry.py", "pico/analysis/metrics/algebra.py"],
        ["pico/analysis/metrics/sparsity.py", "pico/report/inputs/convergence.py", "pico/analysis/engine/run.py"],
    ),
    "analysis": (
        ["pico/checkpoint.py", "pico/analysis/engine/layer.py", "pico/analysis/metrics/sparsity.py"],
        ["pico/report/inputs/convergence.py", "pico/analysis/listing.py", "pico/watch/progress.py"],
    ),
    "behaviour": (
        ["pico/checkpoint.py", "pico/model/decoder.py", "pico/data/tokens/loader.py", "pico/behaviour/landscape.py"],
        ["pico/analysis/metrics/spectra.py", "pico/capture/hugging_face.py", "pico/train/loop.py"],
    ),
    "answers": (
        ["pico/checkpoint.py", "pico/data/tokens/loader.py", "pico/data/tokens/tokenizer.py", "pico/model/decoder.py"],
        ["pico/evaluation/benchmarks.py", "pico/data/preparation/shards.py", "pico/behaviour/measure.py"],
    ),
    "states": (
        ["pico/checkpoint.py", "pico/capture/architectures.py", "pico/capture/default_text.json"],
        ["pico/capture/commands.py", "pico/analysis/metrics/spectra.py", "pico/analysis/engine/layer.py"],
    ),
}
"""Kind of kept value -> files whose edit makes it another, and files that it is no function of."""


@pytest.mark.parametrize("kind", CODE)
def test_a_key_follows_the_code_that_computes_and_no_other(
    kind: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = keys[kind](), identity.sha256_file
    for paths, same in zip(CODE[kind], (False, True), strict=True):
        for path in paths:
            edited = identity.ROOT / path
            assert edited.is_file()
            monkeypatch.setattr(identity, "sha256_file", lambda one, e=edited: "0" if one == e else real(one))
            forget()
            assert (keys[kind]() == before) == same, path
    monkeypatch.setattr(identity, "sha256_file", real)
    forget()
    assert keys[kind]() == before


@pytest.mark.parametrize("kind", CODE)
def test_a_key_follows_the_versions_of_libraries(kind: str, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = keys[kind](), identity.installed_version
    monkeypatch.setattr(identity, "installed_version", lambda name: "0" if name == "numpy" else real(name))
    forget()
    assert keys[kind]() != before


def test_a_key_names_the_device(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, place = checkpoints(run), Place("tiny", "pico", {0: checkpoints(run)[0].folder})
    asked = {
        "sidecars": lambda device: str(checkpoint_folder(tmp_path, "tiny", found[0], device)),
        "analysis": lambda device: str(analysis_folder(run, "tiny", ["per"], ["simple"], tmp_path, device=device)),
        "answers": lambda device: fingerprint(answers_identity(found, tmp_path, {}, device=device, batch_size=2)),
        "states": lambda device: fingerprint(capture_identity(place, Settings())),
    }
    for kind, key in asked.items():
        seen = []
        for device, name in (("cpu", ""), ("cuda", "one GPU"), ("cuda", "another GPU")):
            monkeypatch.setattr("torch.cuda.get_device_name", lambda device, name=name: name)
            monkeypatch.setattr("torch.cuda.is_available", lambda device=device: device == "cuda")
            seen.append(key(device))
        assert len(set(seen)) == 3, kind


def test_what_another_device_computed_is_not_served(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecars = tmp_path / "sidecars"

    def values(device: str, name: str) -> list[float]:
        (tmp_path / name).mkdir()
        analyze_run(run, "tiny", ["per"], ["simple"], tmp_path / name, layers=[0], sidecars=sidecars, device=device)
        return read_table(tmp_path / name)["value"].to_pylist()

    true = values("cpu", "first")
    for path in sidecars.rglob("*.values.json"):
        kept = json.loads(path.read_bytes())
        path.write_text(json.dumps({key: [0.5, *rest] for key, (_, *rest) in kept.items()}))
    assert set(values("cpu", "same device")) == {0.5}  # it is what is kept that is served
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "a GPU")
    monkeypatch.setattr("pico.analysis.engine.layer.on_device", lambda device: nullcontext())  # there is no GPU here
    assert values("cuda", "other device") == true
