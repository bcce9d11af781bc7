"""On every device and in every precision that is to be had here, a run is exact, and goes on as if nothing had been."""

import shutil

import pytest
import torch

from pico.train.loop import train
from pico.train.parallel import World
from pico.train.run import pretrain
from pico.train.spec import run_identity

from .conftest import contents, curve, make_spec

ON_CUDA = [("cuda", "fp32", False), ("cuda", "bf16", False), ("cuda", "bf16", True)]
CASES = [("cpu", "fp32", False), ("cpu", "bf16", False), *(ON_CUDA if torch.cuda.is_available() else [])]

COMPILED = [pytest.param("cpu", "fp32", True, marks=pytest.mark.slow)] if shutil.which("g++") else []


@pytest.mark.parametrize(("device", "precision", "compiled"), [*CASES, *COMPILED])
def test_two_runs_one_of_them_interrupted_leave_the_same_bytes(device, precision, compiled, tokens, tmp_path):
    spec = make_spec(device=device, precision=precision, compile=compiled)
    whole = pretrain(spec, tokens, runs=tmp_path / "whole")
    work = tmp_path / "broken"
    work.mkdir()
    asked = iter(range(10**9))
    world = World(device=torch.device(device))
    assert not train(spec, tokens, work, run_identity(spec, tokens), world=world, stop=lambda: next(asked) >= 7)
    assert train(spec, tokens, work, run_identity(spec, tokens), world=World(device=torch.device(device)))
    assert contents(work / "model") == contents(whole / "model")
    assert curve(work) == curve(whole)


@pytest.mark.parametrize(("device", "precision", "compiled"), CASES)
def test_the_curve_is_that_of_fp32_on_a_cpu_but_for_rounding(device, precision, compiled, tokens, tmp_path):
    plain = curve(pretrain(make_spec(), tokens, runs=tmp_path / "plain"))
    spec = make_spec(device=device, precision=precision, compile=compiled)
    mine = curve(pretrain(spec, tokens, runs=tmp_path / "mine"))
    losses = [point.train_loss for point in mine]
    assert losses == pytest.approx([point.train_loss for point in plain], rel=2e-2 if precision == "bf16" else 1e-4)
