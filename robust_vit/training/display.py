"""How a run looks while it runs: a bar on a terminal, one that updates in place in a notebook, lines elsewhere."""

import html
import sys
import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text


class Display(Protocol):
    """What `Progress` shows itself on."""

    def show(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Shows the figures of a row."""

    def say(self, text: str) -> None:
        """Shows a line that stays."""

    def close(self) -> None:
        """Leaves the display as it is."""


class Clock:
    """Estimates the time left from the steps of this process."""

    def __init__(self, start: int, total: int):
        self.start, self.total, self.began = start, total, time.monotonic()

    def left(self, step: int) -> float:
        """Seconds until the last step, at the mean pace since the start."""
        spent, done = time.monotonic() - self.began, max(1, step - self.start)
        return spent / done * (self.total - step)


class Lines:
    """One line a row, for log files and pipes."""

    def __init__(self, start: int, total: int):
        self.total, self.clock = total, Clock(start, total)
        self.console = Console()

    def show(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Prints the row."""
        left = self.clock.left(step)
        text = describe(values)
        print(f"epoch {epoch:5.1f}  step {step}/{self.total}  {kind:10s} {text}  left {left:.0f}s", flush=True)

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is open."""


class Nothing:
    """Nobody looks."""

    def show(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Terminal:
    """A progress bar; only the figures give way where the window is narrow, never the steps or the time left."""

    def __init__(self, start: int, total: int, console: Console | None = None):
        self.console = console or Console()
        self.clock, self.step = Clock(start, total), start
        figures = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        columns = (
            *(TextColumn("{task.fields[epoch]}"), BarColumn(bar_width=12), TextColumn("{task.completed}/{task.total}")),
            *(TextColumn("{task.fields[text]}", table_column=figures), _Left(self)),
        )
        self.bar = Bar(*columns, console=self.console, expand=True)
        self.task = self.bar.add_task("train", total=total, completed=start, epoch="", text="compiling")
        self.bar.start()

    def show(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Moves the bar; a validation leaves a line above it."""
        self.step = step
        if kind == "train":
            self.bar.update(self.task, completed=step, epoch=f"epoch {epoch:.1f}", text=describe(values))
        else:
            self.console.print(f"epoch {epoch:5.1f}  {kind:10s} {describe(values)}", highlight=False)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the bar where it is."""
        self.bar.stop()


class _Left(ProgressColumn):
    """`left 1:02:03`; by the clock of the run and not by rich's, whose last few seconds jump with every validation."""

    def __init__(self, terminal: Terminal):
        super().__init__(table_column=Column(no_wrap=True))
        self.terminal = terminal

    def render(self, task: Any) -> Text:
        """The column's text."""
        if self.terminal.step == self.terminal.clock.start:
            return Text("left -:--:--")
        return Text(f"left {duration(self.terminal.clock.left(self.terminal.step))}")


class Notebook:
    """A bar and the validations so far, updated in place: HTML through IPython's display handle, no widgets needed."""

    def __init__(self, start: int, total: int):
        from IPython.display import HTML, display

        self.html, self.total, self.clock = HTML, total, Clock(start, total)
        self.lines: list[str] = []
        self.head = self._head(start, "compiling")
        self.handle = display(HTML(self._content()), display_id=True)

    def show(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Moves the bar; a validation leaves a line."""
        if kind == "train":
            left = duration(self.clock.left(step))
            self.head = self._head(step, f"epoch {epoch:.1f}  {describe(values)}  left {left}")
        else:
            self.lines.append(f"epoch {epoch:.1f}  {kind}  {describe(values)}")
        self.handle.update(self.html(self._content()))

    def say(self, text: str) -> None:
        """Adds a line."""
        self.lines.append(text)
        self.handle.update(self.html(self._content()))

    def close(self) -> None:
        """Leaves the display as it is."""

    def _head(self, step: int, text: str) -> str:
        return f'<progress value="{step}" max="{self.total}"></progress> {step}/{self.total}  {html.escape(text)}'

    def _content(self) -> str:
        lines = "".join(f"\n{html.escape(line)}" for line in self.lines)
        return f"<pre>{self.head}{lines}</pre>"


def choose(start: int, total: int, live: bool | None) -> Display:
    """Makes the display that fits where the output goes.

    Args:
      start: the step this process begins at.
      total: steps of the whole run.
      live: a display that moves (True) or plain lines (False); None decides by the output.
    """
    if live is not False and in_notebook():
        return Notebook(start, total)
    console = Console()
    if console.is_terminal if live is None else live:
        return Terminal(start, total, console)
    return Lines(start, total)


def in_notebook() -> bool:
    """True in a Jupyter or Colab kernel; IPython is not imported for the answer."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def describe(values: dict[str, float]) -> str:
    """One line of the figures that matter to a person watching."""
    shown = []
    for name, label in (("loss", "loss"), ("clean_accuracy", "clean"), ("robust_accuracy", "robust")):
        if values.get(name) is not None:
            shown.append(f"{label} {values[name]:.3f}" if name == "loss" else f"{label} {values[name]:6.1%}")
    if values.get("ema_robust_accuracy") is not None:
        shown.append(f"averaged {values['ema_clean_accuracy']:.1%} / {values['ema_robust_accuracy']:.1%}")
    if values.get("gap") is not None:
        shown.append(f"gap to APGD {values['gap']:.1%}")
    if values.get("images_per_second") is not None:
        shown.append(f"{values['images_per_second']:.0f} images/s")
    return "  ".join(shown)


def duration(seconds: float) -> str:
    """`1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
