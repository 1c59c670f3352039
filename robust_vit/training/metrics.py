"""Means of the step's metrics between two reports, with throughput."""

import time

import numpy as np


class Meter:
    """Means since the last reading, with throughput; the first step's time is reported as the compile time."""

    def __init__(self, batch_size: int):
        self.batch_size, self.rows, self.clock = batch_size, [], time.perf_counter()
        self.compile_seconds: float | None = None
        self.compiled = False

    def add(self, metrics: dict[str, float]) -> None:
        """Takes one step's metrics."""
        if not self.compiled:
            self.compile_seconds, self.compiled = time.perf_counter() - self.clock, True
            self.clock = time.perf_counter()
        self.rows.append(metrics)

    def pause(self) -> None:
        """Restarts the clock after validation, so that its time is not counted as training's."""
        self.clock = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Returns the means and starts anew."""
        means = {name: float(np.mean([row[name] for row in self.rows])) for name in self.rows[0]}
        for name in ("clean", "robust"):  # of what the objective looked at
            if f"{name}_correct" in means:
                means[f"{name}_accuracy"] = means.pop(f"{name}_correct")
        seconds = (time.perf_counter() - self.clock) / len(self.rows)
        means |= {"step_seconds": seconds, "images_per_second": self.batch_size / max(seconds, 1e-9)}
        if self.compile_seconds is not None:
            means["compile_seconds"], self.compile_seconds = self.compile_seconds, None
        self.rows, self.clock = [], time.perf_counter()
        return means
