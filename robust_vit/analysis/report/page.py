"""Writes the page of a run: what its files say, and the examples of its gallery, in a template."""

import importlib.resources
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from robust_vit import errors, parallel, provenance
from robust_vit.analysis.report import browser, charts, content, gallery, stories
from robust_vit.evaluation import record
from robust_vit.evaluation.measure import Batch
from robust_vit.evaluation.suites.context import Context

FOLDER, PAGE = "report", "index.html"
EXAMPLES = 256  # in the browser, by default
UNTOLD = "No example was attacked for this page: robust-vit evaluate on the folder does it."


def attempt(
    workdir: str | os.PathLike[str] | None, *arguments: Any, say: Callable[[str], None] = print, **named: Any
) -> None:
    """`write`, whose failure is one line and never costs the result that is already on the disk."""
    if workdir is None:
        return
    try:
        path = write(workdir, *arguments, **named)
    except Exception as error:  # whatever it is, what was measured stands
        told = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"report: not written ({told[:300]}); the result is, and robust-vit evaluate tries again")
    else:
        if path is not None:
            say(f"report: {path}")


def write(
    workdir: str | os.PathLike[str],
    context: Context | None = None,
    batches: Iterable[Batch] | None = None,
    examples: int = EXAMPLES,
) -> pathlib.Path | None:
    """Writes `report/index.html` into a run folder.

    Args:
      workdir: the folder, with result.json.
      context: what was measured, if examples are to be attacked. Of several hosts, and where the attack has no room,
        none are.
      batches: of the examples; the first of the context's by default.
      examples: at most so many; 0 for a page without them.

    Returns:
      The file; None on the hosts that write nothing.

    Raises:
      ValueError: if there is no result.
    """
    import jax

    if not parallel.is_main():
        return None
    folder = pathlib.Path(workdir)
    _result(folder)
    trouble = ""
    if context is not None and context.epsilon and examples and jax.process_count() == 1:
        try:
            gallery.refresh(folder / FOLDER, context, batches, examples)
        except Exception as error:  # of a classifier without gradients, for instance: the rest of the page stands
            trouble = " ".join(f"No example could be attacked for this page: {error}".split())
    run = gathered(folder, bool(examples), trouble=trouble)
    path = folder / FOLDER / PAGE
    provenance.write_atomically(path, render("page.html", title=f"{run['name']}: robust_vit", run=run))
    return path


def _result(folder: pathlib.Path) -> record.Result:
    """The result of a run folder.

    Raises:
      ValueError: if there is none; the line says which command makes it.
    """
    result = record.read(folder / record.RESULT)
    some = bool(record.suites_of(result))
    errors.check("workdir", str(folder), some, f"evaluated: robust-vit evaluate --workdir={folder} makes its result")
    return result


def gathered(
    folder: pathlib.Path, with_examples: bool = True, budget: int | None = None, trouble: str = ""
) -> dict[str, Any]:
    """Everything that the template shows of one run.

    Args:
      with_examples: whether to show those that were attacked.
      budget: bytes of the examples' images; all that a page may hold by default.
      trouble: why there are none, where that is known.
    """
    result, own = _result(folder), folder / FOLDER
    found = gallery.read(own, result.get("weights", {}).get("hash", "")) if with_examples else None
    names, labels = content.class_names(result, 0), {}
    if found is not None:
        names = content.class_names(result, found.walk.clean_logits.shape[1])
        labels = dict(zip(found.walk.indices.tolist(), found.walk.labels.tolist()))
    limited = {} if budget is None else {"budget": budget}
    return {
        "name": folder.resolve().name,
        "workdir": str(folder),
        "model": charts.model_words(content.stored(folder / "config.json")),
        "claim": content.claim(result, str(folder)),
        "figures": content.figures(result),
        "attacks": content.attacks(result),
        "classes": content.per_class(result, labels),
        "findings": content.findings(result),
        "provenance": content.provenance(result, folder),
        "pictures": charts.pictures(folder, result, own, found is not None),
        "examples": found
        and browser.data(found.walk, names, _stories(result, folder, found, names), found.attention, **limited),
        "examples_note": _note(found) if found else (trouble or UNTOLD) if with_examples else "",
    }


def _note(found: gallery.Gallery) -> str:
    walk = found.walk
    return (
        f"{len(walk.labels)} examples of {found.split}, attacked by {walk.attack} inside of {walk.norm.capitalize()}"
        f" {record.pixels(walk.epsilon)}; where AutoAttack broke one, its image is shown."
    )


def _stories(result: record.Result, folder: pathlib.Path, found: gallery.Gallery, names: list[str]) -> dict[int, str]:
    """{dataset index: what became of it}: by AutoAttack, and by the walk."""
    book, _ = stories.book_of(result, folder)
    told = {}
    for row, index in enumerate(found.walk.indices.tolist()):
        walked = stories.from_walk(found.walk, row, names)
        known = found.walk.clean_right[row] and index in book
        told[index] = f"{stories.from_ledger(book[index], names)} {walked}" if known else walked
    return told


def render(template: str, **values: Any) -> str:
    """Fills a template; every value is escaped, whatever file, class name or configuration it is from."""
    import jinja2
    from markupsafe import Markup

    from robust_vit import __version__

    texts = importlib.resources.files("robust_vit.analysis.report") / "templates"
    sources = {file.name: file.read_text(encoding="utf-8") for file in texts.iterdir() if file.is_file()}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(sources),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": content.percent, "interval": content.interval}
    own = {"style": Markup(sources["style.css"]), "script": Markup(sources["browser.js"]), "version": __version__}
    return environment.get_template(template).render(**own, **values)
