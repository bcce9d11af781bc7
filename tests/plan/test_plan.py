"""A plan agrees with the run that follows it, and refuses what cannot be."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pico.cli import app
from pico.config import Params, load_params
from pico.errors import PicoError
from pico.flops import GPUS
from pico.plan.plan import Hardware, find_hardware, plan_suite

ROOT = Path(__file__).parents[2]


@pytest.fixture
def paper(monkeypatch) -> Params:
    monkeypatch.chdir(ROOT)
    from flows.scales import compose

    return compose(ROOT, "paper", [])[0]


def test_the_published_suite(paper):
    plans = {plan.model: plan for plan in plan_suite(paper, find_hardware("h100", None, 0.5, paper))}
    large = plans["large"]
    assert large.counts.total == 569_808_384
    assert large.tokens == 200_000 * 1024 * 2048
    flops = 6 * (569_808_384 - 50304 * 1536 - 25 * 1536) + 12 * 12 * 1536 * 2048  # no input embedding, no norms
    assert large.flops_per_token == flops
    assert large.hours == pytest.approx(large.tokens * flops / (16 * 989e12 * 0.5) / 3600)
    assert all(plan.refusal is None for plan in plans.values())
    for plan in plans.values():
        assert 64 % plan.largest_micro_batch == 0
        assert plan.largest_micro_batch >= plan.micro_batch


def test_what_cannot_fit_is_refused_with_what_would(paper):
    small = Hardware("l4", 16, 121e12, GPUS["l4"].memory_bytes, "", 0.4)
    plans = {plan.model: plan for plan in plan_suite(paper, small)}
    assert plans["tiny"].refusal is None
    medium = plans["medium"]
    assert medium.largest_micro_batch < 16
    assert f"-S training.micro_batch_size={medium.largest_micro_batch}" in medium.refusal
    tiny = Hardware("toy", 16, 1e12, 6 * 2**30, "", 0.4)
    assert "not even a micro-batch of 1 fits" in plan_suite(paper, tiny)[-1].refusal
    with pytest.raises(PicoError, match="is not a multiple of 3 x"):
        plan_suite(paper, Hardware("l4", 3, 121e12, 1, "", 0.4))


def test_hardware_is_known_measured_or_refused_by_name(paper):
    laptop = load_params(ROOT / "params.yaml")
    here = find_hardware(None, None, None, laptop)
    assert (here.name, here.mfu) == ("cpu", 0.3)
    assert here.flops > 1e8
    with pytest.raises(PicoError, match="'h900' is not a GPU"):
        find_hardware("h900", None, None, paper)
    with pytest.raises(PicoError, match="peak in bf16"):
        find_hardware("h100", None, None, laptop)
    with pytest.raises(PicoError, match="no share"):
        find_hardware("h100", None, 1.5, paper)


def test_the_command_prints_a_plan_and_fails_where_something_cannot_be(tmp_path, monkeypatch):
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    before = (tmp_path / "params.yaml").read_bytes()
    assert CliRunner().invoke(app, ["plan"]).exit_code == 0
    shown = CliRunner().invoke(app, ["plan", "-S", "scale=laptop"])
    assert shown.exit_code == 0, shown.output
    assert "323,872" in shown.output  # the tiny model's parameters
    found = CliRunner().invoke(app, ["plan", "-S", "scale=gpu", "-S", "training.steps=200", "--gpu", "h200", "--json"])
    assert found.exit_code == 0, found.output
    models = json.loads(found.stdout)["models"]
    assert models["large"]["tokens"] == 200 * 128 * 2048
    refused = CliRunner().invoke(app, ["plan", "-S", "scale=pico-1b", "--gpu", "l4"])
    assert refused.exit_code == 1
    assert "1b: not even a micro-batch of 1 fits" in refused.output
    assert (tmp_path / "params.yaml").read_bytes() == before
