"""What MkDocs calls at a build: the generated pages, the contents, links that leave `docs/`, and formulas as MathML."""

import html
import pathlib
import re
from typing import Any

import latex2mathml.converter
import pages
import tutorials
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parent.parent.parent
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
OUTSIDE = re.compile(r"\]\(\.\./((?:[\w.-]+/)*[\w.-]+)((?:#[\w-]*)?)\)")


def on_config(config: Any) -> Any:
    """Writes the contents: every page has a place there."""
    by_hand = [path.relative_to(pages.DOCS).as_posix() for path in pages.DOCS.rglob("*.md")]
    config["nav"] = pages.nav({*by_hand, *pages.pages()})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds what is generated, in place of the file that it was made from; and what pages link to beside `docs/`."""
    made: dict[str, str | bytes] = {**pages.pages(), **tutorials.pictures(ROOT)}
    made |= {f"source/{path}": (ROOT / path).read_bytes() for path in _outside(files)}
    for path, content in made.items():
        known = files.get_file_from_path(path)
        if known is not None:
            files.remove(known)
        files.append(File.generated(config, path, content=content))
    return files


def _outside(files: Files) -> set[str]:
    """Files of the repository, beside `docs/`, that pages at its top link to."""
    tops = [file for file in files if file.src_uri.endswith(".md") and "/" not in file.src_uri]
    return {path for file in tops for path, _ in OUTSIDE.findall(file.content_string)}


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Leads links of pages at the top out of `docs/` to copies inside the site."""
    return OUTSIDE.sub(r"](source/\1\2)", markdown) if "/" not in page.file.src_uri else markdown


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Formulas in LaTeX become MathML, which browsers draw without a script and without the network."""

    def drawn(match: re.Match[str]) -> str:
        tex = html.unescape(match[2]).strip()[2:-2].strip()  # between \( and \), or \[ and \]
        return latex2mathml.converter.convert(tex, display="block" if match[1] == "div" else "inline")

    return FORMULA.sub(drawn, content)
