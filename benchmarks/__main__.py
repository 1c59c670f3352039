"""All benchmarks in one table, each beside its goal: python -m benchmarks

A figure is read from `benchmarks/results/*.json`, where the script of its row wrote it with the command, the hardware
and the versions; a row without one says "not measured". Nothing is run here: each script runs alone.
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from robust_vit import commands

RESULTS = pathlib.Path(__file__).parent / "results"
MISSING = "not measured"


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      question: what is measured.
      peer: against what, in the same run.
      script: that measures it.
      goal: the largest ratio of our time to the peer's, or words.
      file: of the results.
      path: keys from its top to the figure.
    """

    question: str
    peer: str
    script: str
    goal: float | str
    file: str = ""
    path: tuple[str, ...] = ()


def _autoattack(name: str, words: str, goal: float, field: str = "seconds") -> Row:
    path = ("models", name, "ratio", field)
    return Row(f"AutoAttack: {words}", "pyautoattack", "benchmarks/autoattack.py", goal, "autoattack.json", path)


INPUT = "timm + torch, torch.compile where it works"
ROWS = (
    Row("input gradient and PGD-10, transformers, float32, CPU", INPUT, "", 0.8),
    Row("input gradient and PGD-10, ResNet-50 and ConvNeXt, float32, CPU", INPUT, "", 1.0),
    Row("adversarial training step (Madry PGD-7, TRADES-10)", "the same in torch", "", 0.8),
    Row("main job: digits from nothing to result", "the same recipe in torch", "", 0.7),
    _autoattack("digits", "robust digits, full budget, compile included", 0.3),
    _autoattack("plain", "weak digits, full budget, compile included", 0.3),
    _autoattack("xcit", "untrained XCiT-N12 at 32x32, 5 % of the steps, once compiled", 0.5, "warm_seconds"),
    Row("AutoAttack: 224 pixels, few points", "pyautoattack", "", 0.7),
    Row("wasted work: Madry PGD-k is k + 1 gradients", "counted", "tests/test_wasted_work.py", "2k + 3 units, exactly"),
    Row("AutoAttack's units of a point that survives", "counted", "robust-vit plan", "9,760 forward passes"),
    Row("compile time: PGD-50 over PGD-1", "itself", "", 1.2),
    Row("compile time: depth 24 over depth 6", "itself", "", 1.5),
    Row("second run of the main job: first step", "itself", "", "within 5 s"),
    Row("1 against 8 devices, one process against two", "itself", "tests/test_two_hosts.py", "the same results"),
    Row("input pipeline at 224", "torch DataLoader", "", 1.0),
    Row("GPU training at 224, bfloat16", "timm, torch.compile", "", "1.3x its rate, MFU 45 %"),
    Row("GPU AutoAttack on a 32x32 ViT", "pyautoattack", "", 0.25),
)


def figure(row: Row, results: pathlib.Path = RESULTS) -> float | None:
    """The ratio that a row's script wrote, None where there is none."""
    path = results / row.file
    if not row.file or not path.is_file():
        return None
    found: Any = json.loads(path.read_text())
    for key in row.path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def verdict(row: Row, found: float | None) -> str:
    """What a figure says of its goal."""
    if found is None:
        return "" if isinstance(row.goal, str) and row.script else MISSING
    if isinstance(row.goal, str):
        return f"{found:.2f}"
    return f"{found:.2f}x" if found <= row.goal else f"{found:.2f}x, missed by {100 * (found / row.goal - 1):.0f} %"


def lines(results: pathlib.Path = RESULTS) -> Iterator[str]:
    """The table as markdown."""
    yield "| question | peer, in the same run | goal | measured | script |"
    yield "|---|---|---|---|---|"
    for row in ROWS:
        goal = row.goal if isinstance(row.goal, str) else f"{row.goal:g}x"
        said = verdict(row, figure(row, results)) or "held by a test"
        yield f"| {row.question} | {row.peer} | {goal} | {said} | {row.script or '-'} |"


def main() -> None:
    """Prints the table, and where its figures come from."""
    commands.survive_closed_pipe()
    print("\n".join(lines()))
    for path in sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text())
        where = report.get("hardware", {})
        print(f"\n{path.name}: {where.get('cpu', '')}, {where.get('cores', '?')} cores, {report.get('date', '')}")


if __name__ == "__main__":
    sys.exit(main())
