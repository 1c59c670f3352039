"""A picture and its numbers, side by side in a folder: `name.png`, `name.json` (figures), `name.npz` (arrays)."""

import io
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from robust_vit import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(
    out: pathlib.Path,
    name: str,
    figure: "Figure | None",
    numbers: Mapping[str, Any] | None = None,
    arrays: Mapping[str, Any] | None = None,
) -> list[pathlib.Path]:
    """Writes what is given, each file in one step.

    Args:
      out: the folder.
      name: of the files, without ending; a slash, of a run that is called by its path, becomes a dash.
      figure: the picture.
      numbers: figures for people and programs, as JSON.
      arrays: what the picture is drawn of, by name.

    Returns:
      The files written.
    """
    files, name = [], "-".join(part for part in name.replace("/", "-").split("-") if part)
    if figure is not None:
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        files.append(out / f"{name}.png")
        provenance.write_atomically(files[-1], picture.getvalue())
    if numbers is not None:
        files.append(out / f"{name}.json")
        provenance.write_json(files[-1], {**numbers, "command": provenance.command()})
    if arrays is not None:
        packed = io.BytesIO()
        np.savez_compressed(packed, **{key: np.asarray(value) for key, value in arrays.items()})
        files.append(out / f"{name}.npz")
        provenance.write_atomically(files[-1], packed.getvalue())
    return files
