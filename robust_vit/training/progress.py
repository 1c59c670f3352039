"""What a run reports while it runs: each row of figures goes to `metrics.jsonl`, the trackers and the display."""

import math
import pathlib
from typing import Any

from robust_vit import config as config_lib
from robust_vit import parallel
from robust_vit.training import display, trackers


class Progress:
    """Writes rows, shows them; silent on all hosts but the main one.

    Args:
      workdir: the run folder.
      total_steps: length of training.
      start: the step this process begins at; rows past it are dropped.
      live: a display that moves; None decides by whether the output is a terminal or a notebook.
      trackers: names of `training.trackers`, comma separated.
      config: the configuration, for trackers that show it.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        total_steps: int,
        start: int = 0,
        live: bool | None = None,
        trackers: str = "",
        config: Any = None,
    ):
        self.main = parallel.is_main()
        if self.main:
            self.rows, self.trackers = _open(pathlib.Path(workdir), start, trackers, config)
            self.display = display.choose(start, total_steps, live)

    def write(self, kind: str, step: int, epoch: float, **values: float) -> None:
        """Appends one row and shows it.

        Args:
          kind: "train" or "validation".
          step: steps taken.
          epoch: passes over the training split, fractional.
          **values: the figures; accuracies are fractions. What is not finite becomes null, as JSON knows no other.

        Raises:
          OSError: if metrics.jsonl cannot be written. A tracker that fails is named, once, and training goes on.
        """
        if not self.main:
            return
        values = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        row = {"schema": trackers.SCHEMA, "kind": kind, "step": step, "epoch": round(epoch, 4), **values}
        self.rows.write(row)
        for name, tracker in list(self.trackers.items()):
            self._try(name, lambda tracker=tracker: tracker.write(row))
        self._show(lambda shown: shown.show(kind, step, epoch, values))

    def _try(self, name: str, action: Any) -> None:
        """Calls a tracker: a service that is down must not end days of training, and metrics.jsonl has every row."""
        try:
            action()
        except Exception as error:
            del self.trackers[name]
            line = " ".join(str(error).split()) or type(error).__name__
            self.say(f"training.trackers: {name} failed ({line[:200]}) and is left out from here on")

    def say(self, text: str) -> None:
        """Shows a line."""
        if self.main:
            self._show(lambda shown: shown.say(text))

    def _show(self, action: Any) -> None:
        """Shows something; a reader that has gone (`... | head`) ends the display and not the training."""
        try:
            action(self.display)
        except BrokenPipeError:
            self.display = display.Nothing()

    def close(self) -> None:
        """Ends the display and the files."""
        if not self.main:
            return
        self._show(lambda shown: shown.close())
        for name, tracker in list(self.trackers.items()):
            self._try(name, tracker.close)
        self.rows.close()


def _open(workdir: pathlib.Path, start: int, names: str, config: Any) -> tuple[trackers.JSONLines, dict]:
    rows = trackers.JSONLines(workdir / "metrics.jsonl", start)
    return rows, trackers.build(names, workdir, start, config_lib.plain(config) if config is not None else None)
