"""Notebooks as pages: prose as it stands, code in fences, and what a run left: text, and pictures as files."""

import base64
import json
import pathlib
import re
from typing import Any

FOLDERS = ("notebooks", "launch/colab")
NOTEBOOK = re.compile(r"\]\((\w+)\.ipynb\)")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of terminals


def notebooks(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """{path of the page: notebook}."""
    found = [path for folder in FOLDERS for path in sorted((root / folder).glob("*.ipynb"))]
    names = {path: f"colab_{path.stem}" if "colab" in path.parts else path.stem for path in found}
    return {f"tutorials/{names[path]}.md": path for path in found}


def pages(root: pathlib.Path) -> dict[str, str]:
    """{path: Markdown}: every notebook, and the list of them."""
    found = {path: _page(path, json.loads(notebook.read_text())) for path, notebook in notebooks(root).items()}
    titles = {path: re.search(r"^# (.*)$", text, re.MULTILINE).group(1) for path, text in found.items()}
    listed = "\n".join(
        f"{i}. [{title}]({path.rpartition('/')[2]})" for i, (path, title) in enumerate(titles.items(), 1)
    )
    said = "Notebooks, short prose next to code; each runs in minutes on two CPU cores and asks nothing of the network."
    where = "They are the files of `notebooks/`, and the one for Colab is in `launch/colab/`."
    found["tutorials/index.md"] = f"# Tutorials\n\n{said} {where}\n\n{listed}\n"
    return found


def pictures(root: pathlib.Path) -> dict[str, bytes]:
    """{path in the site: PNG} of the pictures that the notebooks hold."""
    found = {}
    for page, notebook in notebooks(root).items():
        for number, cell in enumerate(json.loads(notebook.read_text())["cells"]):
            for place, data in enumerate(_png(cell)):
                found[_name(page, number, place)] = base64.b64decode(data)
    return found


def _name(page: str, cell: int, place: int) -> str:
    return f"{page.removesuffix('.md')}_{cell}_{place}.png"


def _png(cell: dict[str, Any]) -> list[str]:
    """What a cell drew, in base64."""
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    return ["".join(one["image/png"]) for one in data if "image/png" in one]


def _page(path: str, notebook: dict[str, Any]) -> str:
    return "\n\n".join(_cell(path, number, cell) for number, cell in enumerate(notebook["cells"])) + "\n"


def _cell(path: str, number: int, cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return NOTEBOOK.sub(r"](\1.md)", source).replace("](../docs/", "](../")
    parts = [f"```python\n{source}\n```"]
    said = COLOURS.sub("", "".join(_text(output) for output in cell.get("outputs", []))).rstrip()
    parts += [f"```text\n{said}\n```"] if said else []
    after = _alt(source)
    for place in range(len(_png(cell))):
        parts.append(f"![{after}]({_name(path, number, place).rpartition('/')[2]})")
    return "\n\n".join(parts)


def _alt(source: str) -> str:
    """What a picture shows, from the cell's last comment; its last line of code without one."""
    comments = re.findall(r"#\s+(.+)$", source, re.MULTILINE)
    return (comments or source.strip().splitlines())[-1].replace("[", "(").replace("]", ")")


def _text(output: dict[str, Any]) -> str:
    """What a cell printed, or the text of its last value where it drew nothing."""
    if output["output_type"] == "stream":
        return "".join(output["text"])
    data = output.get("data", {})
    return "" if "image/png" in data or "text/html" in data else "".join(data.get("text/plain", [])) + "\n"
