"""What a training run wrote as it went, as a small value that plots itself.

history = History.read("runs/digits")
history                                   # 196 rows of training, 5 of validation, to step 1964
history["loss"], history.validation["robust_accuracy"]
history.plot()                            # a Matplotlib figure
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from robust_vit import provenance
from robust_vit.errors import check, lookup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = "metrics.jsonl"


class Columns(Mapping[str, np.ndarray]):
    """Rows as columns of numbers; what a row does not have is NaN.

    Args:
      rows: of metrics.jsonl, of one kind.
    """

    def __init__(self, rows: list[dict[str, Any]]):
        self._rows = rows
        number = (int, float)
        names = [name for row in rows for name, value in row.items() if isinstance(value, number) and name != "schema"]
        self._names = tuple(dict.fromkeys(names))

    def __getitem__(self, name: str) -> np.ndarray:
        """[rows] float64.

        Raises:
          ValueError: for a name that no row has, with the nearest that some have.
        """
        lookup("column", name, dict.fromkeys(self._names))
        return np.array([np.nan if row.get(name) is None else row[name] for row in self._rows], np.float64)

    def __iter__(self):
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def count(self) -> int:
        """Rows."""
        return len(self._rows)


@dataclasses.dataclass(frozen=True)
class History:
    """The rows of a run.

    Attributes:
      path: of metrics.jsonl.
      train, validation: columns of the rows of each kind. Where a run was killed and went on, a step that was done
        twice has one row, the last.
    """

    path: pathlib.Path
    train: Columns
    validation: Columns

    @classmethod
    def read(cls, run: str | os.PathLike[str]) -> "History":
        """Reads a run folder, or its metrics.jsonl.

        Raises:
          ValueError: if there is none; the line says which command makes it.
        """
        path = pathlib.Path(run)
        path = path / METRICS if path.is_dir() else path
        maker = f"a folder with {METRICS}: robust-vit train --config=digits --workdir={run} makes it"
        check("run", str(run), path.is_file(), maker)
        rows = provenance.read_lines(path)
        kinds = {}
        for kind in ("train", "validation"):
            by_step = {row["step"]: row for row in rows if row.get("kind") == kind}
            kinds[kind] = Columns([by_step[step] for step in sorted(by_step)])
        return cls(path, **kinds)

    def __getitem__(self, name: str) -> np.ndarray:
        """A column of the training rows."""
        return self.train[name]

    def __repr__(self) -> str:
        ends = [int(columns["step"].max()) for columns in (self.train, self.validation) if columns.count]
        until = f", to step {max(ends)}" if ends else ""
        return f"{self.train.count} rows of training, {self.validation.count} of validation{until}"

    def best(self, name: str) -> tuple[int, float]:
        """(step, value) of the largest value of a validation column; the first of equals.

        Raises:
          ValueError: for a column that validation does not have.
        """
        values = self.validation[name]
        at = int(np.nanargmax(values))
        return int(self.validation["step"][at]), float(values[at])

    def plot(self, **words: Any) -> "Figure":
        """Loss, accuracies, epsilon and learning rate over epochs; `words` are those of `plots.curves`."""
        from robust_vit.analysis import plots

        return plots.curves(self.path, **words)
