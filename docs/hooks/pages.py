"""The pages of the site that are not written by hand, or not whole: made of registries and docstrings at every build.

`pages()` is all there is to know: {path in the site: Markdown}. A page that is written by hand
(`explanation/attacks/pgd.md`) keeps its text, and what the program knows of it is put below.
"""

import ast
import contextlib
import functools
import importlib
import inspect
import io
import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import findings
import tutorials

import robust_vit as rv
from robust_vit import commands, config
from robust_vit.attacks import aliases
from robust_vit.evaluation import suites
from robust_vit.models import summary

DOCS = pathlib.Path(__file__).parent.parent
PACKAGE = pathlib.Path(rv.__file__).parent


def pages() -> dict[str, str]:
    """{path in the site: Markdown} of every page that is made, whole or in part."""
    made = [attacks(), objectives(), families(), findings.pages(DOCS), tutorials.pages(DOCS.parent), api()]
    found = {path: text for group in made for path, text in group.items()}
    found["reference/configuration.md"] = configuration()
    found["reference/configurations.md"] = configurations()
    found["reference/suites.md"] = suite_page()
    found["reference/models.md"] = models()
    found["reference/commands.md"] = command_page()
    return found


def written(path: str, title: str = "", summary: str = "") -> str:
    """What stands in a file of `docs/`; without one, a title and a summary."""
    file = DOCS / path
    return file.read_text().rstrip() if file.is_file() else f"# {title}\n\n{summary}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def autodoc(name: str, **options: Any) -> str:
    """The instruction for mkdocstrings to put the documentation of an object here."""
    lines = [f"      {key}: {str(value).lower()}" for key, value in options.items()]
    return "\n".join([f"::: {name}", *(["    options:", *lines] if lines else [])])


def full_name(made: Callable[..., Any]) -> str:
    """`robust_vit.attacks.pgd.pgd`."""
    made = inspect.unwrap(getattr(made, "func", made))
    return f"{made.__module__}.{made.__qualname__}"


def first_paragraph(thing: Any) -> str:
    """Of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def headed(name: str, module: Any) -> tuple[str, str]:
    """A title and a summary, from the first paragraph of a module: `LTD, low-temperature distillation (ltd)`."""
    summary = first_paragraph(module)
    title = summary.partition(":")[0]
    return (f"{title} ({name})" if title != summary and len(title) < 60 else name), summary


def module_of(made: Callable[..., Any]) -> Any:
    """The module that holds a factory."""
    return importlib.import_module(inspect.unwrap(getattr(made, "func", made)).__module__)


def attacks() -> dict[str, str]:
    """A page for every registered attack: by hand where there is one, its call, its aliases, its keywords."""
    found = {}
    for name, make in rv.attacks.ATTACKS.items():
        path = f"explanation/attacks/{name}.md"
        parts = [written(path, *headed(name, module_of(make)))]
        if not (DOCS / path).is_file() and (call := attack_call(name)):
            parts.append(call)
        others = [f"`{alias}` ({_keywords(more)})" for alias, (known, more) in aliases.ALIASES.items() if known == name]
        if others:
            parts.append("Known to `attacks.build` also as " + ", ".join(others) + ".")
        whole = autodoc(full_name(make), heading_level=3, skip_local_inventory=True)
        found[path] = "\n\n".join([*parts, "## Keywords", whole]) + "\n"
    return found


def _keywords(given: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items()) or "the same"


def attack_call(name: str) -> str:
    """A first call, where epsilon is all that must be said; "" elsewhere."""
    options = rv.attacks.options(name)
    needed = [key for key, default in options.items() if default is inspect.Parameter.empty]
    if needed != ["epsilon"]:
        return ""
    norm = options.get("norm", "linf")
    radius = {"linf": "8 / 255", "l2": "0.5", "l1": "5.0"}[norm]
    call = f'attack = rv.attacks.build("{name}", threat=rv.Threat("{norm}", {radius}))'
    return f"```python\n{call}\nadversarial = jax.jit(attack)(keys, classifier, images, labels)\n```"


def objectives() -> dict[str, str]:
    """A page for every objective: the formula is the first line of its docstring."""
    found = {}
    for name, make in rv.objectives.every().items():
        path = f"explanation/objectives/{name}.md"
        text = written(path, *headed(name, module_of(make)))
        needs = {
            "an attack": name not in rv.objectives.WITHOUT_ATTACK,
            "a teacher, `objective.teacher`": name in rv.objectives.TEACHERS | rv.objectives.encoders.TEACHERS,
        }
        needed = " and ".join(what for what, is_so in needs.items() if is_so) or "neither an attack nor a teacher"
        known = ", ".join(f"`{key}={value!r}`" for key, value in rv.objectives.options(name).items())
        found[path] = "\n\n".join(
            [
                text,
                training_line(name),
                f"It needs {needed}. Keywords with the values of its paper: {known or 'none'}.",
                "## Formula and keywords",
                autodoc(full_name(make), heading_level=3, skip_local_inventory=True) + "\n",
            ]
        )
    return found


def training_line(name: str) -> str:
    """The command that trains by it."""
    if name in rv.objectives.encoders.ENCODERS:
        return "How to train by it: [encoders without labels](../../unlabelled.md)."
    teacher = " --config.objective.teacher=runs/plain" if name in rv.objectives.TEACHERS else ""
    return f"```sh\nrobust-vit train --config=digits:{name}{teacher} --workdir=runs/{name}\n```"


def families() -> dict[str, str]:
    """A page for every family of models: what the file says of it, its variants counted, its fields."""
    found, counted = {}, summary.figures()
    by_module = {name: getattr(made.func, "__module__", "") for name, made in rv.models.MODELS.items()}
    for module, names in itertools.groupby(sorted(by_module, key=lambda n: (by_module[n], n)), key=by_module.get):
        family = module.rpartition(".")[2]
        path = f"explanation/models/{family}.md"
        holder = importlib.import_module(module)
        names = list(names)
        classes = dict.fromkeys(rv.models.MODELS[name].func.__qualname__ for name in names)
        found[path] = "\n\n".join(
            [
                written(path, headed(family, holder)[0], inspect.cleandoc(holder.__doc__)),
                "## Variants",
                model_table(counted[name] for name in names if name in counted),
                "## Fields",
                *(autodoc(f"{module}.{name}", heading_level=3, skip_local_inventory=True) for name in classes),
                "",
            ]
        )
    return found


def model_table(rows: Iterable[summary.Summary]) -> str:
    """Models with their counts."""
    cells = [
        (f"`{row.name}`", row.image_size, f"{row.parameters:,}", f"{row.macs / 1e9:.3f}", row.tokens or "")
        for row in rows
    ]
    return table(("name", "image", "parameters", "GMACs", "tokens"), cells)


def models() -> str:
    """Every model."""
    said = "1e9 multiply-adds of one image (convolutions, matrix products), counted from the traced program."
    return (
        f"# Models\n\nGMACs: {said} `robust-vit models` prints the same.\n\n{model_table(summary.figures().values())}\n"
    )


def configuration() -> str:
    """Every field with its default and its comment, by section."""
    text = [
        "# Configuration",
        "Every field of `robust_vit.config.base()`. A file in `configs/` holds differences from it, and any field is"
        " overridden on the command line: `--config.attack.epsilon=4/255`.",
    ]
    known = config.describe()
    for section, fields in itertools.groupby(known, key=lambda field: field.name.rpartition(".")[0].partition(".")[0]):
        rows = [(f"`{field.name}`", f"`{field.default!r}`", field.comment) for field in fields]
        text += [f"## {section or 'run'}", table(("field", "default", "meaning"), rows)]
    return "\n\n".join(text) + "\n"


def configurations() -> str:
    """Every configuration that has a name."""
    rows = [(f"`{name}`", what) for name, what in config.available().items()]
    text = "What `--config=NAME` knows: differences from the [defaults](configuration.md), one experiment a file."
    return f"# Named configurations\n\n{text}\n\n{table(('name', 'what it is'), rows)}\n"


def suite_page() -> str:
    """Every suite of `robust-vit evaluate`, and its options."""
    rows = [(f"`{name}`", first_paragraph(suite)) for name, suite in suites.SUITES.items()]
    options = [(f"`{name}`", option.help, option.allowed) for name, option in suites.OPTIONS.items()]
    return "\n\n".join(
        [
            "# Suites",
            '`robust-vit evaluate --suite=clean,autoattack`, `classifier.evaluate("clean,autoattack", ...)`, or'
            " `evaluation.suite` of a configuration.",
            table(("suite", "what it measures"), rows),
            "## Options",
            "`--option=name=value`, or keywords of `classifier.evaluate`.",
            table(("option", "what it does", "allowed"), options) + "\n",
        ]
    )


def command_page() -> str:
    """What every command says of itself."""
    text = ["# Commands", f"```text\n{commands.overview()}\n```"]
    for name in commands.COMMANDS:
        text += [f"## {name}", f"```text\n{help_of(name).strip()}\n```"]
    return "\n\n".join(text) + "\n"


@functools.cache
def help_of(name: str) -> str:
    """What `robust-vit NAME --help` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        commands.main(["robust-vit", name, "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def api() -> dict[str, str]:
    """A page for every package, with all public objects of its own modules."""
    return {f"reference/api/{name}.md": _package(name, modules) for name, modules in packages().items()}


def packages() -> dict[str, list[str]]:
    """{package: its public modules with something to document}, itself first; `robust_vit` has those at the root."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        if path.name == "__init__.py" or _documents(path):
            found.setdefault(".".join(parts[:-1]), []).append(module)
    return {package: sorted(modules, key=lambda name: (name != package, name)) for package, modules in found.items()}


def _documents(path: pathlib.Path) -> bool:
    """Whether a module has a public class or function."""
    parts = ast.parse(path.read_text()).body
    return any(not part.name.startswith("_") for part in parts if isinstance(part, ast.FunctionDef | ast.ClassDef))


def _package(name: str, modules: list[str]) -> str:
    return "\n\n".join([f"# {name}", *(autodoc(module, heading_level=2) for module in modules), ""])


# Where pages stand ----------------------------------------------------------------------------------------------------

SECTIONS = {
    "Tutorials": "tutorials/",
    "How to": "",
    "Explanation": "explanation/",
    "Reference": "reference/",
}
HOME, FILES = "index.md", "files.md"


def nav(paths: Iterable[str]) -> list[Any]:
    """The site's contents, from the paths of its pages: a section a folder, how to do a thing at the top."""
    paths = sorted(paths)
    tops = [path for path in paths if "/" not in path and path not in (HOME, FILES)]
    found: list[Any] = [{"Home": HOME}]
    for title, folder in SECTIONS.items():
        inside = [path for path in paths if folder and path.startswith(folder)] if folder else tops
        inside += [FILES] if title == "Reference" and FILES in paths else []
        found.append({title: list(_branches(inside, folder))})
    return found


def _branches(paths: list[str], folder: str) -> Iterator[Any]:
    """Pages in a folder, its index first, then the folders in it."""
    direct = [path for path in paths if "/" not in path.removeprefix(folder)]
    yield from sorted(direct, key=lambda path: (not path.endswith("index.md"), path))
    inner = [path for path in paths if path not in direct]
    for name, group in itertools.groupby(inner, key=lambda path: path.removeprefix(folder).split("/")[0]):
        title = {"api": "API", "masking": "Masking findings"}.get(name, name.capitalize())
        yield {title: list(_branches(list(group), f"{folder}{name}/"))}


FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    """The targets of relative links and pictures in Markdown, code left out."""
    plain = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    return [target for target, _ in re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)", plain)]
