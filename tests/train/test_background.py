"""Work beside training: prefetched batches, checkpoints written in the background."""

import threading
import time

import pytest
import torch

from pico.train.batches import AHEAD, prefetched
from pico.train.checkpoints import BackgroundWriter

CPU = torch.device("cpu")


def test_batches_come_in_order_and_few_are_made_ahead():
    made = []

    def make(number):
        made.append(number)
        return (torch.tensor(number),)

    with prefetched(make, 3, 50, CPU) as batches:
        assert [int(next(batches)[0]) for _ in range(4)] == [3, 4, 5, 6]
        time.sleep(0.2)
        assert len(made) <= 4 + AHEAD + 1
    assert not [one for one in threading.enumerate() if one.name.startswith("prefetch")]
    with prefetched(make, 0, 7, CPU) as batches:
        assert [int(one) for (one,) in batches] == list(range(7))


def test_what_goes_wrong_in_making_a_batch_is_raised_where_it_is_asked_for():
    def make(number):
        if number == 2:
            raise ValueError("row 2")
        return (torch.tensor(number),)

    with prefetched(make, 0, 5, CPU) as batches:
        assert [int(next(batches)[0]), int(next(batches)[0])] == [0, 1]
        with pytest.raises(ValueError, match="row 2"):
            next(batches)


def test_background_work_is_done_in_order_and_its_error_is_raised_once():
    background, done = BackgroundWriter(), []
    background.submit(lambda: (time.sleep(0.1), done.append(1)))
    background.submit(lambda: done.append(2))
    background.wait()
    assert done == [1, 2]

    def fail():
        raise OSError("disk full")

    background.submit(fail)
    with pytest.raises(OSError, match="disk full"):
        background.submit(lambda: done.append(3))
    background.wait()
    assert done == [1, 2]
