"""Signals as requests to stop."""

import os
import signal
import threading

import pytest

from robust_vit.training import interruption


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_the_first_signal_asks_and_handlers_come_back(number, name, capfd):
    before = signal.getsignal(number)
    with interruption.Interruption() as made:
        assert made.asked == ""
        os.kill(os.getpid(), number)
        assert made.asked == name
    assert signal.getsignal(number) is before
    assert ("once more stops at once" in capfd.readouterr().err) == (name == "Ctrl-C")


def test_the_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), interruption.Interruption() as made:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert made.asked == "Ctrl-C"


def test_of_several_hosts_sigterm_is_left_to_jax(monkeypatch):
    """JAX's preemption service hears it below Python; a handler of ours would hide it."""
    before, heard = signal.getsignal(signal.SIGTERM), []
    monkeypatch.setattr(interruption.jax, "process_count", lambda: 2)
    monkeypatch.setattr(interruption.os, "kill", lambda pid, number: heard.append(number))
    with interruption.Interruption():
        assert signal.getsignal(signal.SIGTERM) is before
        signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGTERM]  # Ctrl-C is handed on: all hosts stop at the same step


def test_outside_the_main_thread_nothing_changes():
    found = []

    def run():
        with interruption.Interruption() as made:
            found.append((made.asked, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [("", signal.getsignal(signal.SIGTERM))]
