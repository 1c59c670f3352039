"""Runs the notebooks and keeps what they print and draw: python notebooks/run.py [NAME ...]

Each cell's output stands in the file as a true run left it, with the digest of the code that it is of
(`metadata.executed`); a test asks for another run where the code has changed. Needs .[notebooks]; downloads nothing.
On two slow CPU cores with nothing compiled before, the first took 96 s, the third 208, the fourth 80, Colab's 198.
"""

import hashlib
import pathlib
import sys
import time
from collections.abc import Sequence

import nbformat
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT = 600  # seconds a cell
LARGEST = 60_000  # characters that the output of a cell may have in text


def notebooks() -> dict[str, pathlib.Path]:
    """{name: file} of all notebooks."""
    return {path.stem: path for folder in ("notebooks", "launch/colab") for path in (ROOT / folder).glob("*.ipynb")}


def digest(notebook: nbformat.NotebookNode) -> str:
    """Of the code in all cells."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def execute(path: pathlib.Path) -> nbformat.NotebookNode:
    """Runs a notebook in a kernel of its own, in its own folder.

    Raises:
      CellExecutionError: with the traceback, where a cell fails.
    """
    notebook = nbformat.read(path, 4)
    NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    return notebook


def kept(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as it is stored: outputs joined, without times of cells, with the digest of its code."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if len(str(output.get("text", ""))) > LARGEST:
                raise ValueError("a cell prints too much to be kept")
    notebook.metadata["executed"] = digest(notebook)
    return notebook


def main(names: Sequence[str]) -> None:
    """Runs all notebooks, or those that are named, one after another."""
    for name, path in sorted(notebooks().items()):
        if not names or name in names:
            began = time.monotonic()
            nbformat.write(kept(execute(path)), path)
            print(f"{path.relative_to(ROOT)}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
