"""`pico capture` of other people's models: a folder that the analysis takes for a run."""

from typer.testing import CliRunner

from pico.capture.run import MODULES
from pico.checkpoint import checkpoints, verify
from pico.cli import app


def test_any_hugging_face_causal_lm_is_captured(folders, tmp_path):
    out = tmp_path / "captured"
    arguments = [
        "capture",
        str(folders["gpt_neox"]),
        "--out",
        str(out),
        "--rows",
        "3",
        "--seq-len",
        "12",
        "--positions",
    ]
    found = CliRunner().invoke(app, [*arguments, "4"])
    assert found.exit_code == 0, found.output
    (made,) = checkpoints(out)
    verify(made.folder)
    activations = made.dynamics("val", "activations")
    assert set(activations) == {f"layers.{layer}.{module}" for layer in range(2) for module in MODULES}
    assert {len(tensor) for tensor in activations.values()} == {3 * 4}
    assert set(made.dynamics("val", "gradients")) == {f"{name}.weight" for name in activations}
    again = CliRunner().invoke(app, [*arguments, "4"])
    assert again.exit_code == 0, again.output
    other = CliRunner().invoke(app, [*arguments, "5"])
    assert other.exit_code == 1


def test_what_was_captured_can_be_analyzed(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = str(folders["llama"])
    made = CliRunner().invoke(app, ["capture", model, "--rows", "3", "--seq-len", "12"])
    assert made.exit_code == 0, made.output
    found = CliRunner().invoke(app, ["analyze", "captured/llama", "--metrics", "gini", "--out", "table"])
    assert found.exit_code == 0, found.output
    assert (tmp_path / "table" / "step_00000000.parquet").exists()
