"""What a run says while it runs: a live display on a terminal, plain lines elsewhere, and `metrics.jsonl` always.

Rows are appended and never rewritten, except that a resumed run first drops the rows past its checkpoint, which it is
about to write again.
"""

import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from robust_vit import __version__, parallel

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml-collections", "chex")


def environment() -> dict[str, Any]:
    """Returns versions, devices, git revision and command: what a reader needs to run the same again."""
    versions = {"robust_vit": __version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    devices = [f"{d.platform}:{d.device_kind}" for d in jax.devices()]
    return {
        "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions,
        "devices": {"kind": devices[0], "count": len(devices), "hosts": jax.process_count()},
        "git": revision(),
        "platform": platform.platform(),
    }


def revision() -> str:
    """Returns the git revision of the package's source, with `+` where files differ from it; "" outside a checkout."""
    here = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD")
        return head + ("+" if head and git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


class Report:
    """Writes rows, prints progress.

    Args:
      workdir: the run folder.
      total_steps: length of training.
      start: the step this process begins at; rows past it are dropped.
      live: a live display; None decides by whether the output is a terminal.
    """

    def __init__(self, workdir: pathlib.Path, total_steps: int, start: int = 0, live: bool | None = None):
        self.main = parallel.is_main()
        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        self.total, self.start, self.began = total_steps, start, time.monotonic()
        self.console = Console()
        self.live = self.console.is_terminal if live is None else live
        self.progress = None
        if self.main:
            self._drop_rows_after(start)
            self.file = self.path.open("a")
            self.tensorboard = _tensorboard(workdir)
            if self.live:
                self._start_display()

    def _drop_rows_after(self, step: int) -> None:
        if not self.path.exists():
            return
        rows = [row for row in read_rows(self.path) if row["step"] <= step]
        partial = self.path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(self.path)

    def _start_display(self) -> None:
        columns = (
            *(TextColumn("{task.fields[epoch]}"), BarColumn(), TextColumn("{task.completed}/{task.total}")),
            *(TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()),
        )
        self.progress = Progress(*columns, console=self.console)
        self.task = self.progress.add_task("train", total=self.total, completed=self.start, epoch="", text="compiling")
        self.progress.start()

    def write(self, kind: str, step: int, epoch: float, **values: float) -> None:
        """Appends one row and shows it.

        Args:
          kind: "train" or "validation".
          step: steps taken.
          epoch: passes over the training split, fractional.
          **values: the figures; accuracies are fractions.
        """
        if not self.main:
            return
        values = {name: float(value) for name, value in values.items()}
        self.file.write(json.dumps({"kind": kind, "step": step, "epoch": round(epoch, 4), **values}) + "\n")
        self.file.flush()
        if self.tensorboard is not None:
            for name, value in values.items():
                self.tensorboard.add_scalar(f"{kind}/{name}", value, step)
        self._show(kind, step, epoch, values)

    def _show(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        text = describe(kind, values)
        if self.progress is not None:
            if kind == "train":
                self.progress.update(self.task, completed=step, epoch=f"epoch {epoch:.1f}", text=text)
            else:
                self.console.print(f"epoch {epoch:5.1f}  {kind:10s} {text}", highlight=False)
            return
        spent, done = time.monotonic() - self.began, max(1, step - self.start)
        left = spent / done * (self.total - step)
        print(f"epoch {epoch:5.1f}  step {step}/{self.total}  {kind:10s} {text}  left {left:.0f}s", flush=True)

    def say(self, text: str) -> None:
        """Prints a line."""
        if self.main:
            self.console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Ends the display and the files."""
        if not self.main:
            return
        if self.progress is not None:
            self.progress.stop()
        self.file.close()
        if self.tensorboard is not None:
            self.tensorboard.close()


def describe(kind: str, values: dict[str, float]) -> str:
    """One line of the figures that matter to a person watching."""
    shown = []
    for name, label in (("loss", "loss"), ("clean_accuracy", "clean"), ("robust_accuracy", "robust")):
        if name in values:
            shown.append(f"{label} {values[name]:.3f}" if name == "loss" else f"{label} {values[name]:6.1%}")
    if "ema_robust_accuracy" in values:
        shown.append(f"averaged {values['ema_clean_accuracy']:.1%} / {values['ema_robust_accuracy']:.1%}")
    if "images_per_second" in values:
        shown.append(f"{values['images_per_second']:.0f} images/s")
    return "  ".join(shown)


def read_rows(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl; a torn last line, from a kill in mid-write, is left out."""
    rows = []
    for line in pathlib.Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _tensorboard(workdir: pathlib.Path) -> Any:
    """A TensorBoard writer when tensorboardX is installed, else None."""
    if importlib.util.find_spec("tensorboardX") is None:
        return None
    import tensorboardX

    return tensorboardX.SummaryWriter(str(pathlib.Path(workdir) / "tensorboard"))
