"""Several processes agree with one, with the whole model in each or a share of it."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from pico.checkpoint import checkpoints
from pico.train.loop import train
from pico.train.parallel import World
from pico.train.spec import run_identity

from .conftest import contents, curve, make_spec, with_optimizer


def _one_of_several(
    rank: int, size: int, sharding: str, optimizer: str, tokens: Path, work: Path, meeting: Path, after: int
) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    spec = with_optimizer(make_spec(workers=size, micro_batch_size=1, sharding=sharding), optimizer)
    asked = iter(range(10**9))
    train(spec, tokens, work, run_identity(spec, tokens), world=World(rank, size), stop=lambda: next(asked) >= after)
    torch.distributed.destroy_process_group()


def run_several(
    size: int, sharding: str, tokens: Path, work: Path, *, optimizer: str = "adamw", after: int = 10**9
) -> None:
    """Trains in `size` processes, which are asked to leave at the `after`-th time of asking."""
    work.mkdir(exist_ok=True)
    meeting = work.with_name(f"{work.name}-meeting-{after}")
    arguments = (size, sharding, optimizer, tokens, work, meeting, after)
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_one_of_several, args=(rank, *arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("size", "sharding"), [(2, "none"), (4, "none"), (2, "full")])
def test_several_processes_agree_with_one(undisturbed, tmp_path, size, sharding):
    tokens, single = undisturbed
    work = tmp_path / "work"
    run_several(size, sharding, tokens, work)
    ours, theirs = (np.array([(p.train_loss, p.gradient_norm) for p in curve(w)]) for w in (work, single))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert curve(work)[-1].heldout_loss == pytest.approx(curve(single)[-1].heldout_loss, rel=1e-5)
    for mine, one in zip(checkpoints(work / "model"), checkpoints(single / "model"), strict=True):
        assert mine.step == one.step
        for kind in ("activations", "gradients", "gradient_norms"):
            found, expected = mine.dynamics("val", kind), one.dynamics("val", kind)
            assert list(found) == list(expected)
            for name, tensor in found.items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
    assert mine.optimizer().keys() == one.optimizer().keys()
    for name, tensor in mine.model().items():
        torch.testing.assert_close(tensor, one.model()[name], rtol=1e-3, atol=1e-5)


INTERRUPTED = [(4, "none", "adamw"), (2, "full", "adamw"), (2, "none", "muon"), (2, "none", "sgd"), (2, "full", "sgd"),
               (2, "none", "lion"), (2, "full", "lion")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("size", "sharding", "optimizer"), INTERRUPTED)
def test_a_run_that_was_interrupted_is_the_undisturbed_one_to_the_bit(undisturbed, tmp_path, size, sharding, optimizer):
    tokens, _ = undisturbed
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_several(size, sharding, tokens, whole, optimizer=optimizer)
    # processes ask every ten updates: at 10 of 12
    run_several(size, sharding, tokens, broken, optimizer=optimizer, after=1)
    assert len(curve(broken)) == 10
    run_several(size, sharding, tokens, broken, optimizer=optimizer)
    assert contents(broken / "model") == contents(whole / "model")
    assert curve(broken) == curve(whole)
    alone = tmp_path / "alone"
    alone.mkdir()
    spec = with_optimizer(make_spec(), optimizer)
    train(spec, tokens, alone, run_identity(spec, tokens))
    ours, theirs = ([point.train_loss for point in curve(work)] for work in (whole, alone))
    assert ours == pytest.approx(theirs, rel=1e-3 if optimizer == "muon" else 1e-4)  # bfloat16 rounds
