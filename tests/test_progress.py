"""Promises of the progress display: few lines, right numbers, and it never stops the work."""

from __future__ import annotations

import io
import math
import sys
import threading

import pytest
from rich.console import Console

from chatloom import progress as module
from chatloom.progress import Progress, duration, progress, rate_text, say, value_text


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "\r" not in captured.err
    return captured.err.splitlines()


def test_a_log_file_gets_one_line_for_each_tenth_and_a_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(100, label="pretrain", clock=clock, live=False) as bar:
        for _ in range(100):
            clock.now += 1.0
            bar.advance(1, loss=2.5)
    lines = lines_of(capsys)
    assert len(lines) == 10
    assert lines[0] == "pretrain: 10/100 steps (10%)  1 steps/s  1m 30s left  loss 2.5"
    assert lines[-1] == "pretrain: 100 steps in 1m 40s  1 steps/s  loss 2.5"


def test_fast_work_does_not_flood_a_log_file(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(1000, clock=clock, live=False) as bar:
        for _ in range(1000):
            clock.now += 0.001
            bar.advance()
    assert len(lines_of(capsys)) == 1


def test_slow_work_is_not_silent_in_a_log_file(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(100_000, clock=clock, live=False) as bar:
        for _ in range(20):
            clock.now += 10.0
            bar.advance()
    assert len(lines_of(capsys)) == 6 + 1


def test_unknown_and_zero_totals_are_shown_without_percent_or_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(None, unit="documents", label="clean", clock=clock, live=False) as bar:
        for _ in range(4):
            clock.now += 31.0
            bar.advance(250)
        assert math.isnan(bar.seconds_left)
    with Progress(0, label="nothing", clock=clock, live=False):
        pass
    lines = lines_of(capsys)
    assert lines[0] == "clean: 250 documents  8.06 documents/s"
    assert lines[-1] == "nothing: 0 steps in 0.0 s"


@pytest.mark.parametrize("jump", [-5000.0, 5000.0])
def test_a_jumping_clock_gives_no_negative_time_and_the_rate_recovers(jump: float) -> None:
    clock = Clock()
    with Progress(10_000, clock=clock, quiet=True) as bar:
        for step in range(400):
            clock.now += 1.0 if step != 200 else jump
            bar.advance()
            assert not bar.seconds_left < 0
            assert bar.rate.elapsed >= 0
        assert bar.rate.per_second == pytest.approx(1.0, rel=0.05)
        assert bar.seconds_left == pytest.approx(9600, rel=0.05)


def test_a_clock_that_stands_still_divides_nothing_by_zero(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(5, clock=Clock(), live=False) as bar:
        for _ in range(5):
            bar.advance()
    assert lines_of(capsys) == ["5 steps in 0.0 s"]


def test_a_resumed_run_counts_from_where_it_stopped_and_its_rate_from_now(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(100, start=80, clock=clock, live=False) as bar:
        for _ in range(10):
            clock.now += 1.0
            bar.advance()
        assert bar.seconds_left == pytest.approx(10.0)
    assert lines_of(capsys) == ["90/100 steps (90%)  1 steps/s  10 s left", "90/100 steps (90%) in 10 s  1 steps/s"]


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, quiet=True) as bar:
        bar.advance(3)
        bar.say("hidden")
    assert lines_of(capsys) == []


def test_advancing_from_threads_loses_no_count() -> None:
    with progress(None, quiet=True) as bar:
        threads = [threading.Thread(target=lambda: [bar.advance() for _ in range(500)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bar.done == 4000


def test_an_error_passes_through_and_the_closing_line_says_where_it_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()

    def work() -> None:
        with Progress(10, label="sft", clock=clock, live=False) as bar:
            clock.now += 2.0
            bar.advance(4)
            raise KeyError("x")

    with pytest.raises(KeyError):
        work()
    assert lines_of(capsys) == ["sft: 4/10 steps (40%) when stopped, after 2.0 s  2 steps/s"]


def test_a_broken_standard_error_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    with progress(2) as bar:
        bar.advance(2)
        say("nobody hears this")
    monkeypatch.setattr(sys, "stderr", None)
    with progress(2) as bar:
        bar.advance(2)
    assert bar.done == 2


def test_markup_in_a_message_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(module, "_console", lambda: Console(file=screen, force_terminal=True, width=160))
    with Progress(10, label="[red]pre[/red]", live=True) as outer:
        with Progress(5, label="inner", live=True) as inner:  # bars nest
            inner.advance(5, text="[b]x")
            inner.say("sampled: [bold]你好[/bold]")
        outer.advance(1)
    text = screen.getvalue()
    assert "[bold]你好[/bold]" in text
    assert "[red]pre[/red]" in text
    assert module._LiveBar._shared is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(3e-4, "3.00e-04"), (2.34567, "2.346"), (12345, "12,345"), (12345.6, "12,346"), (0.0, "0"), (math.nan, "nan"),
     (math.inf, "inf"), (True, "True"), ("ok", "ok"), (-0.5, "-0.5"), (7, "7")],
)  # fmt: skip
def test_values_read_as_a_person_writes_them(value: float, text: str) -> None:
    assert value_text(value) == text


def test_durations_and_rates_read_as_a_person_writes_them() -> None:
    assert [duration(s) for s in (0, 8.21, 59.97, 318, 7440, 284_400, -3, math.nan)] == [
        "0.0 s", "8.2 s", "1m 00s", "5m 18s", "2h 04m", "3d 07h", "0.0 s", "?",
    ]  # fmt: skip
    assert rate_text(7200.4, "tokens") == "7,200 tokens/s"
    assert rate_text(0.05, "steps") == "20 s per step"
    assert rate_text(math.nan, "steps") == ""
