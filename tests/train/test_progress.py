"""A run, as a user sees it: the line, the bar, the warnings; and what does not disturb it."""

import io

import pytest
from rich.console import Console

from pico.train.run import pretrain
from pico.watch.events import EventReader, EventWriter, Utilization
from pico.watch.progress import Bar, Display

from .conftest import make_spec

START = {"start": 0, "steps": 400, "tokens_per_step": 512}
STEP = {"step": 400, "loss": 2.3456, "learning_rate": 3e-3, "tokens_per_second": 12345.6, "mfu": 0.421}


def shown(events, *, terminal: bool) -> str:
    out = io.StringIO()

    def log(line: str) -> None:
        print(line, file=out)

    with Bar(
        "pretrain tiny", None, "steps", log=log, console=Console(file=out, force_terminal=terminal, width=150)
    ) as bar:
        display = Display(bar, warn=log)
        for event in events:
            display.show(event)
        if terminal:
            bar.progress.refresh()
    return out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_step_loss_rate_speed_and_time_left_are_shown(terminal, monkeypatch):
    monkeypatch.setattr("pico.watch.progress.LOG_SECONDS", 0.0)
    half = {**STEP, "step": 200, "heldout_loss": 2.5}
    text = shown([START, STEP | {"step": 100}, half, STEP], terminal=terminal)
    for part in ("tiny", "400/400 steps", "loss 2.346", "lr 3.0e-03", "12,346 tokens/s", "MFU 42%", "held-out 2.500"):
        assert part in text
    assert terminal or "left" in text


def test_warnings_and_captures_are_shown():
    assert "loss spike" in shown([START, {"warning": "loss spike"}], terminal=False)
    events = [START, STEP | {"step": 8}, {"capturing": 8}]
    assert "capturing learning dynamics of step 8" in shown(events, terminal=True)
    assert "loss 2.346" in shown(events, terminal=False), "the last line is about training"


def test_a_bar_says_the_same_in_a_terminal_and_in_a_log_and_publishes_the_fraction(monkeypatch):
    monkeypatch.setattr("pico.watch.progress.PUBLISH_SECONDS", 0.0)
    lines: list[str] = []
    published: list[float] = []
    with Bar(
        "prepare", 1.6, "MB", log=lines.append, publish=published.append, console=Console(file=io.StringIO())
    ) as bar:
        bar.fraction(0.25)
        bar.update(0.8, note="speeches")
        assert lines == [], "the next line is due in half a minute"
        bar.advance(0.8)
    (line,) = lines
    assert line.startswith("prepare: 1.6/1.6 MB")
    assert line.endswith("speeches")
    assert published == [0.25, 0.5, 1.0, 1.0]


def test_work_that_failed_is_not_said_to_be_done():
    lines: list[str] = []
    published: list[float] = []
    bar = Bar("analyze", 4, "layers", log=lines.append, publish=published.append, console=Console(file=io.StringIO()))

    def interrupted() -> None:
        with bar:
            bar.update(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert lines == []
    assert published == [0.75]


def test_the_events_of_a_real_run_are_shown_with_their_share_of_the_peak(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr("pico.train.loop.FLUSH_SECONDS", 0.0)
    raw: list[dict] = []
    pretrain(make_spec(), tokens, runs=tmp_path, show=raw.append)
    utilization = Utilization(make_spec().decoder, make_spec().training)
    events = [utilization(event) for event in raw]
    steps = [event for event in events if "step" in event]
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert all(event["mfu"] > 0 and event["tokens_per_second"] > 0 for event in steps)
    assert len({round(event["mfu"] / event["tokens_per_second"], 12) for event in steps}) == 1
    assert "12/12" in shown(events, terminal=False)


def test_a_torn_line_is_passed_over_and_a_line_being_written_is_waited_for(tmp_path):
    path = tmp_path / "progress.jsonl"
    follower = EventReader(path)
    assert follower.read() == []
    path.write_text('{"step": 1}\n{"st{"step": 2}\n{"step": 3}\n{"ste')
    assert follower.read() == [{"step": 1}, {"step": 3}]
    with open(path, "a") as file:
        file.write('p": 4}\n')
    assert follower.read() == [{"step": 4}]


def test_an_event_that_cannot_be_written_is_dropped(tmp_path):
    EventWriter(tmp_path / "no such folder" / "progress.jsonl")({"step": 1})
