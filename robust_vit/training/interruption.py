"""SIGTERM and Ctrl-C as a request: the run saves at the next step and says how it goes on.

    with Interruption() as interruption:
        while not interruption.asked: ...

A single process asks itself. Several hosts are stopped at the same step by JAX's preemption service: it hears SIGTERM
by a handler of its own, below Python's, which one of ours would hide; so SIGTERM is left to it, and Ctrl-C handed on.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Interruption:
    """A context in which SIGTERM and the first Ctrl-C set `asked` to the signal's name; the second Ctrl-C interrupts.

    Signals reach the main thread only: in any other thread this context changes nothing.
    """

    def __init__(self):
        self.asked = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            listened = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
            self._previous = {number: signal.signal(number, self._hear) for number in listened}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = NAMES[number]
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the second time at once
            # os.write: the interrupted code may be in the middle of a print
            os.write(2, b"\nCtrl-C: saving after this step; once more stops at once\n")
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
