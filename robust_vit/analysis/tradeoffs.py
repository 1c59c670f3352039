"""What robustness costs: runs and published models on one chart, clean accuracy or size against robust accuracy.

points = [tradeoffs.read(run) for run in ("runs/digits", "runs/plain")]
tradeoffs.plot(points)                                     # clean against robust, with the Pareto front
tradeoffs.plot(tradeoffs.published("imagenet-linf-4/255"), x="parameters")
"""

import dataclasses
import os
import pathlib
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robust_vit import config as config_lib
from robust_vit.analysis import comparison
from robust_vit.analysis.curves_plots import COLOURS
from robust_vit.analysis.history import METRICS, History
from robust_vit.analysis.report import content
from robust_vit.errors import check, lookup
from robust_vit.evaluation import tables
from robust_vit.threat import Threat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "#4A4A4A"
AROUND = [(0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]  # where a number may stand
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Axis -> (what it says, whether less is better).
AXES = {
    "clean": ("clean accuracy", False),
    "parameters": ("parameters", True),
    "macs": ("multiply-adds of one image", True),
    "images_per_second": ("images a second in training", False),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One model on the chart.

    Attributes:
      name: of the run, or as its paper calls it.
      clean, robust: accuracies, fractions.
      clean_interval, robust_interval: of 95 %; None of published figures.
      attack: that `robust` is under, in words.
      parameters, macs: of the model; None where unknown.
      images_per_second: in training, the median of its rows; None where no metrics are left.
      source: of a published figure; "" of one's own.
    """

    name: str
    clean: float
    robust: float
    clean_interval: tuple[float, float] | None = None
    robust_interval: tuple[float, float] | None = None
    attack: str = ""
    parameters: int | None = None
    macs: int | None = None
    images_per_second: float | None = None
    source: str = ""


def read(run: str | os.PathLike[str], sizes: bool = True) -> Point:
    """The point of a run folder or a result.json: under the strongest attack that was measured.

    Args:
      run: the folder or the file.
      sizes: whether to count parameters and multiply-adds of the model that the folder's configuration describes; this
        traces it.

    Raises:
      ValueError: if it has no result, no clean accuracy or none under attack; the line says which command measures it.
    """
    path = pathlib.Path(run)
    result = comparison.read(path)
    folder = path if path.is_dir() else path.parent
    told = content.claim(result, str(folder))
    for name, suite in (("clean", "clean"), ("figure", "autoattack")):
        known = told[name] is not None
        needed = f"evaluated: robust-vit evaluate --workdir={folder} --suite={suite}"
        check("run", str(run), known, needed)
    entry = content.measured(result)[content.strongest(result)]
    config = content.stored(folder / "config.json")
    return Point(
        folder.resolve().name,
        told["clean"],
        told["figure"],
        tuple(told["clean_interval"]),
        tuple(told["interval"]),
        f"{told['under']}, {tables.threat({k: entry[k] for k in ('norm', 'epsilon')})}",
        *(count(config) if sizes else (None, None)),
        throughput(folder),
    )


def count(config: dict[str, Any]) -> tuple[int | None, int | None]:
    """(parameters, multiply-adds) of a configuration's model; (None, None) where it cannot be built."""
    from robust_vit import models
    from robust_vit.models import summary

    section = config_lib.plain(config_lib.ConfigDict(config.get("model") or {}))
    try:
        module = models.build(section.pop("name"), **section)
    except (KeyError, TypeError, ValueError):  # no configuration, or one of another version
        return None, None
    return summary.count_parameters(module), summary.count_macs(module)


def throughput(folder: pathlib.Path) -> float | None:
    """Images a second in training, the median of the rows."""
    if not (folder / METRICS).is_file():
        return None
    train = History.read(folder).train
    return float(np.nanmedian(train["images_per_second"])) if "images_per_second" in train else None


def published(text: str) -> list[Point]:
    """The published points of a data set and threat: "imagenet-linf-4/255".

    Raises:
      ValueError: if there are none; the line names those that there are.
    """
    from robust_vit.analysis import published as table
    from robust_vit.models import summary

    data, _, threat = text.partition("-")
    check("published", text, bool(threat), "a data set and a threat, such as imagenet-linf-4/255")
    rows, known = table.of(data, **Threat.parse(threat).keywords), summary.figures()
    points = []
    for row in rows:
        size = known.get(row.architecture)
        sizes = (size.parameters, size.macs) if size else (None, None)
        points.append(Point(row.model, row.clean, row.robust, None, None, "AutoAttack", *sizes, None, row.source))
    return points


def front(points: Sequence[Point], x: str = "clean") -> list[int]:
    """The Pareto front: positions of the points that no other is at least as good as in both and better in one, from
    left to right. Points without a value of `x` are not on it.
    """
    sign = -1 if lookup("x", x, AXES)[1] else 1
    values = [(sign * getattr(p, x), p.robust) if getattr(p, x) is not None else None for p in points]
    known = [n for n, value in enumerate(values) if value is not None]

    def beaten(n: int) -> bool:
        a, b = values[n]
        return any(c >= a and d >= b and (c > a or d > b) for c, d in (values[m] for m in known))

    return sorted((n for n in known if not beaten(n)), key=lambda n: (getattr(points[n], x), points[n].robust))


def numbers(points: Sequence[Point], x: str = "clean") -> dict[str, Any]:
    """What the chart shows, as JSON: the points, and the names of those on the front."""
    rows = [dataclasses.asdict(point) for point in points]
    return {"x": x, "points": rows, "front": [points[n].name for n in front(points, x)]}


def plot(points: Sequence[Point], x: str = "clean") -> "Figure":
    """Robust accuracy against something it may cost, with 95 % intervals where they are known and the Pareto front.

    One's own runs have colours and marks of their own; published ones are grey, with numbers. All names are in the list
    at the right, where they cannot meet a line.

    Args:
      points: of `read` and `published`; those without a value of `x` are left out, and said in the list.
      x: a name of AXES.

    Raises:
      ValueError: if no point has a value of `x`.
    """
    import matplotlib as mpl

    from robust_vit.analysis import plots

    words, _ = lookup("x", x, AXES)
    shown = [point for point in points if getattr(point, x) is not None]
    check("points", [point.name for point in points], bool(shown), f"at least one whose {words} is known")
    with mpl.rc_context(plots.STYLE):
        figure, axes = plots._figure(8.2, max(4.2, 1.4 + 0.19 * len(points)), 1, 1)
        _front(axes, shown, x)
        own, found = ([point for point in shown if bool(point.source) == other] for other in (False, True))
        several = len({point.attack for point in shown}) > 1
        for n, point in enumerate(own):
            _own(axes, point, x, n, several)
        for n, point in enumerate(found, 1):
            label = f"{n}  {point.name}: {100 * point.robust:.1f} % ({100 * point.clean:.1f} %), published"
            axes.plot(getattr(point, x), point.robust, "o", color=GREY, markersize=3.5, label=label, zorder=2)
        axes.set(xlabel=words, ylabel="robust accuracy")
        axes.set_title(_title(shown))
        _scales(axes, x)
        without = [point.name for point in points if getattr(point, x) is None]
        handles, labels = axes.get_legend_handles_labels()
        if without:
            handles.append(mpl.lines.Line2D([], [], linestyle="none"))
            labels.append(textwrap.fill(f"{words} unknown: {', '.join(without)}", 44))
        figure.legend(handles, labels, loc="outside right upper", fontsize=7.5, labelspacing=0.45)
        if found:
            _numbered(figure, axes, found, x)
    return figure


def _front(axes: Any, points: Sequence[Point], x: str) -> None:
    best = front(points, x)
    if len(best) < 2:  # one point is no front
        return
    at = [(getattr(points[n], x), points[n].robust) for n in best]
    axes.plot(*zip(*at), color="#999999", linewidth=1.2, linestyle=(0, (4, 2)), zorder=1, label="Pareto front")


def _own(axes: Any, point: Point, x: str, n: int, with_attack: bool) -> None:
    colour, marker = COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]
    low, high = point.robust_interval or (point.robust, point.robust)
    errors: dict[str, Any] = {"yerr": [[point.robust - low], [high - point.robust]]}
    if x == "clean" and point.clean_interval:
        errors["xerr"] = [[point.clean - point.clean_interval[0]], [point.clean_interval[1] - point.clean]]
    label = f"{_short(point.name)}: {100 * point.robust:.1f} % ({100 * point.clean:.1f} % clean)"
    label += f"\n    under {point.attack}" if with_attack else ""
    style = {"color": colour, "marker": marker, "markersize": 7, "capsize": 2.5, "elinewidth": 1, "linestyle": "none"}
    axes.errorbar(getattr(point, x), point.robust, **errors, **style, label=label, zorder=3)


def _numbered(figure: Any, axes: Any, points: Sequence[Point], x: str) -> None:
    """Writes 1, 2, ... beside the points, each where it meets the least of other numbers, points and lines."""
    figure.draw_without_rendering()  # sizes are known from here on
    scale = figure.dpi / 72
    dots = axes.transData.transform([(getattr(point, x), point.robust) for point in points]) / scale  # in points
    taken = [(*dot, 2.5, 2.5) for dot in dots]  # centre and half sizes
    for line in axes.lines:  # of the front, of intervals, of other marks
        ends = axes.transData.transform(line.get_xydata()) / scale
        for a, b in zip(ends[:-1], ends[1:]):
            steps = np.linspace(0, 1, 2 + int(np.hypot(*(b - a)) / 3))[:, None]
            taken += [(*place, 1.5, 1.5) for place in a + steps * (b - a)]
    for n, dot in enumerate(dots, 1):
        half = (2.3 * len(str(n)) + 0.7, 3.6)
        places = [(dot[0] + r * (half[0] + 3) * c, dot[1] + r * 7 * d) for r in (1, 1.7, 2.4) for c, d in AROUND]
        best = min(places, key=lambda place: sum(_overlap((*place, *half), other) for other in taken))
        taken.append((*best, *half))
        style = {"fontsize": 7, "ha": "center", "va": "center_baseline", "color": GREY, "textcoords": "offset points"}
        at = (getattr(points[n - 1], x), points[n - 1].robust)
        axes.annotate(str(n), at, (best[0] - dot[0], best[1] - dot[1]), **style)


def _overlap(a: tuple, b: tuple) -> float:
    """Area that two boxes (x, y, half width, half height) share."""
    sides = [min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k] - a[k + 2], b[k] - b[k + 2]) for k in (0, 1)]
    return max(0.0, sides[0]) * max(0.0, sides[1])


def _short(name: str, length: int = 24) -> str:
    """A name that fits the list."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _scales(axes: Any, x: str) -> None:
    from matplotlib.ticker import EngFormatter, PercentFormatter

    axes.margins(0.08)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if x == "clean":
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        return
    values = axes.dataLim.intervalx
    if values[1] > 5 * values[0] > 0:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter("")


def _title(points: Sequence[Point]) -> str:
    """The attack, where all share it."""
    attacks = {point.attack for point in points}
    return f"under {attacks.pop()}" if len(attacks) == 1 else "under the strongest attack measured"


def explain(subjects: Sequence[Any], out: pathlib.Path) -> list[pathlib.Path]:
    """Draws the runs, and the published figures that were asked for, against clean accuracy and against size."""
    from robust_vit.analysis import saving

    points = [read(subject.folder) for subject in subjects]
    if text := subjects[0].options.published:
        points += published(text)
    files = []
    for x in AXES:
        if any(getattr(point, x) is not None for point in points):
            files += saving.save(out, f"tradeoff_{x}", plot(points, x), numbers(points, x))
    return files
