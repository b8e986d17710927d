"""A signal is noted, a second one is not; and what was there before comes back."""

import os
import signal
import threading

import pytest

from dino_path.training import signals
from dino_path.training.signals import SIGNALS, stop_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_nothing_else_happens(number: signal.Signals) -> None:
    with stop_signals() as stop:
        assert not stop.is_made
        os.kill(os.getpid(), number)
        assert stop.is_made
        assert stop.signal is number


def test_signals_that_come_together_are_one_request() -> None:
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # would end this test
    assert stop.signal is signal.SIGTERM


def test_a_second_request_and_the_end_bring_the_old_handlers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME_REQUEST_S", 0.0)
    monkeypatch.setattr(signals, "SAME_CTRL_C_S", 0.0)
    seen: list[int] = []
    before = [signal.signal(number, lambda number, _: seen.append(number)) for number in SIGNALS]
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is signal.SIGUSR1
        assert seen == [signal.SIGTERM], "the second does what it did before"
        with stop_signals() as stop:
            pass
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == [signal.SIGTERM, signal.SIGUSR1]
        assert not stop.is_made
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def test_a_thread_that_cannot_take_signals_trains_without_them() -> None:
    made: list[bool] = []

    def work() -> None:
        with stop_signals() as stop:
            made.append(stop.is_made)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert made == [False]


def test_ctrl_c_is_told_at_once_and_the_second_ends_what_runs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signals, "SAME_CTRL_C_S", 600.0)  # a busy machine may pause for a second in between
    with stop_signals(is_told=True) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun passes on what the terminal has sent too: one request
        assert stop.signal is signal.SIGINT
        assert capfd.readouterr().err.count("finished and saved first") == 1
        monkeypatch.setattr(signals, "SAME_CTRL_C_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
