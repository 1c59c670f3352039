"""The site: everything registered has its page, every link leads somewhere, every example runs, every command is read.

Nothing here needs MkDocs, but for the last, slow test; `.ci/run docs` builds the site strictly.
"""

import ast
import importlib
import importlib.util
import inspect
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_vit as rv
from robust_vit import commands, config, main
from robust_vit.evaluation import suites
from robust_vit.evaluation.masking import checks
from robust_vit.evaluation.masking.program import lint
from robust_vit.training import validate

RANK_PROMOTION = "allow"  # of the examples, which are a reader's own

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs" / "hooks"))
findings, pages, tutorials = (importlib.import_module(name) for name in ("findings", "pages", "tutorials"))
sys.path.pop(0)

MADE = pages.pages()
BY_HAND = {path.relative_to(pages.DOCS).as_posix(): path.read_text() for path in pages.DOCS.rglob("*.md")}
SITE = BY_HAND | MADE


def test_everything_registered_has_its_page():
    explained = {path.removeprefix("explanation/").removesuffix(".md") for path in SITE}
    assert {f"attacks/{name}" for name in rv.attacks.names()} <= explained
    assert {f"objectives/{name}" for name in rv.objectives.every()} <= explained
    families = {made.func.__module__.rpartition(".")[2] for made in rv.models.MODELS.values()}
    assert len(families) >= 10 and {f"models/{family}" for family in families} <= explained
    assert all(f"`{name}`" in SITE["reference/models.md"] for name in rv.models.names())
    assert all(f"`{name}`" in SITE["reference/suites.md"] for name in [*suites.SUITES, *suites.OPTIONS])
    assert all(f"## {name}" in SITE["reference/commands.md"] for name in commands.COMMANDS)


def test_every_finding_of_the_masking_report_has_its_page():
    known = findings.in_the_program()
    assert len(known) > 30 and known <= set(findings.names())
    for name in findings.names():
        text = SITE[f"explanation/masking/{name}.md"]
        assert text.startswith("# ") and f"[`{name}`]({name}.md)" in SITE["explanation/masking/index.md"]
        assert "## What the report says" in text and "Rule" in text


def test_the_examples_of_findings_are_warnings_in_the_words_of_the_report():
    for name, make in findings.EXAMPLES.items():
        found = make()
        assert found.name == name
        assert found.verdict == ("ok" if name == "static_check" else "warning"), found
    source = " ".join(inspect.getsource(checks).split())
    assert all(findings.ADVICE[name] in source for name in ("one_step", "black_box"))


def test_the_configuration_page_has_every_field_with_its_comment():
    text = SITE["reference/configuration.md"]
    for field in config.describe():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{field.name}` |")]
        assert field.comment.replace("|", "\\|") in row and f"`{field.default!r}`" in row


def test_every_link_leads_to_a_page_a_picture_or_a_file():
    pictures = tutorials.pictures(ROOT)
    broken = []
    for path, text in SITE.items():
        for target in pages.links(text):
            place = pathlib.PurePosixPath(path).parent / target
            there = _normal(place)
            if there not in SITE and there not in pictures and not (pages.DOCS / place).is_file():
                broken.append(f"{path}: {target}")
    assert not broken


def _normal(path):
    parts: list[str] = []
    for part in path.parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)


def test_a_notebook_becomes_a_page_with_what_its_cells_printed_and_drew(tmp_path):
    (tmp_path / "notebooks").mkdir()
    text = [{"output_type": "stream", "text": ["\x1b[31m94 %\x1b[0m\n"]}]
    drawn = [{"output_type": "execute_result", "data": {"image/png": "iVBORw==", "text/plain": ["<Figure>"]}}]
    cells = [
        {
            "cell_type": "markdown",
            "source": ["# Title\n", "See [the next](two.ipynb) and [a page](../docs/compare.md)."],
        },
        {"cell_type": "code", "source": ["measure()"], "outputs": text},
        {"cell_type": "code", "source": ["figure  # what was measured"], "outputs": drawn},
    ]
    (tmp_path / "notebooks" / "one.ipynb").write_text(json.dumps({"cells": cells}))
    page = tutorials.pages(tmp_path)["tutorials/one.md"]
    assert "[the next](two.md) and [a page](../compare.md)" in page
    assert "```python\nmeasure()\n```\n\n```text\n94 %\n```" in page and "<Figure>" not in page
    (name,) = tutorials.pictures(tmp_path)
    assert f"![what was measured]({name.removeprefix('tutorials/')})" in page
    assert tutorials.pictures(tmp_path)[name] == b"\x89PNG"


def test_no_docstring_reads_as_a_link_that_leads_nowhere():
    """`x["a"] [B]` is a reference in Markdown, and a build that is strict fails on it."""
    for path in pathlib.Path(rv.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (said := ast.get_docstring(node)):
                prose = "\n".join(line for line in said.splitlines() if not line.startswith("    "))
                found = re.findall(r"\[[^\]\n]+\] \[[A-Za-z]+\]", re.sub(r"`[^`]*`", "", prose))
                assert not found, f"{path.name}: {getattr(node, 'name', '')}: {found}"


def test_the_contents_name_every_page_once():
    listed = re.findall(r"'([\w./-]+\.md)'", repr(pages.nav(SITE)))
    assert sorted(listed) == sorted(SITE)


def test_a_page_without_a_head_line_or_with_two_is_none():
    for path, text in SITE.items():
        heads = [line for line in pages.FENCE.sub("", text).splitlines() if re.match(r"# \S", line)]
        assert len(heads) == 1 and text.startswith("# "), path


# What readers type ----------------------------------------------------------------------------------------------------

BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
# Pages whose examples other tests run.
ELSEWHERE = (
    "bring_your_own_model.md",
    "explain.md",
    "tutorials/",
    *(f"explanation/masking/{kind}.md" for kind in lint.ADVICE),
)
# Those that compile next to nothing run by default, and so do all of objectives.
QUICK = (
    *(
        "own_images.md",
        "write_an_attack.md",
        "lecture.md",
        "explanation/index.md",
        "explanation/masking/static_check.md",
    ),
    "explanation/attacks/fgsm.md",
)
# Those whose attack gives the clean image back where it finds no adversarial one.
KEEP_SUCCESSES = ("index.md", "apgd.md", "fab.md", "square.md")
CODE = {path: "\n".join(BLOCK.findall(text)) for path, text in SITE.items() if BLOCK.search(text)}
CASES = [
    pytest.param(path, marks=[] if path in QUICK or "/objectives/" in path else [pytest.mark.slow])
    for path in CODE
    if not path.startswith(ELSEWHERE)
]


@pytest.fixture(scope="module")
def world():
    """What the pages go on from (explanation/index.md), small: a tiny ViT for the run of the digits, 4 images."""
    model = rv.models.build(
        "vit", depth=1, width=16, heads=2, patch_size=4, image_size=8, channels=1, num_classes=10, pooling="mean"
    )
    logits_fn = rv.models.logits_fn(model, rv.models.init(model, jax.random.key(0)))
    classifier = rv.Classifier(logits_fn, threat="linf-0.1", class_names=tuple("0123456789"))
    images, labels = rv.data.build("digits").arrays("test", limit=4)
    labels = classifier.predict(images)  # right on all of them, as an attack wants it
    keys = jax.random.split(jax.random.key(0), 4)
    told = {"jax": jax, "jnp": jnp, "np": np, "rv": rv, "classifier": classifier, "keys": keys}
    return told | {"images": rv.pixels.as_float(images), "labels": labels}


def run(path, world, monkeypatch, home):
    """In a folder that has the figures of a run of the digits, and of the run no more."""
    rows = [{"kind": "train", "step": step, "epoch": step / 10, "loss": 1 / step} for step in (10, 20)]
    (home / "runs" / "digits").mkdir(parents=True)
    (home / "runs" / "digits" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(home)
    monkeypatch.setattr(rv, "load", lambda *_, **__: world["classifier"])
    found = dict(world)
    exec(compile(CODE[path], path, "exec"), found)  # the reader's own program
    if "adversarial" in found:
        moved = jnp.abs(found["adversarial"] - rv.pixels.as_float(found["images"])).max()
        assert moved <= 0.1 + 1e-6  # every page attacks in this ball
        assert moved > 0 or path.endswith(KEEP_SUCCESSES)


@pytest.mark.parametrize("path", CASES)
def test_the_examples_of_a_page_run(path, world, monkeypatch, tmp_path, capsys):
    run(path, world, monkeypatch, tmp_path)


def test_the_static_check_names_what_its_pages_show(world):
    images = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
    for kind in lint.ADVICE:
        found = dict(world)
        exec(CODE[f"explanation/masking/{kind}.md"], found)
        assert kind in {item.kind for item in lint.check(found["defended"], images) if item.severity == "warning"}


COMMANDS = {
    line: path
    for path, text in SITE.items()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
}


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_read(line):
    words = shlex.split(line)
    if words[0] != "robust-vit":
        assert line.startswith("python3 -m venv") or words[0] in ("pip", "mkdocs"), line
        return
    module = importlib.import_module(commands.COMMANDS[words[1]][0])
    if words[1] in ("train", "preview"):
        kept = [word for word in words[1:] if not (words[1] == "preview" and word.startswith(("--out", "--all")))]
        read, _ = main.parse([*kept, *(["--workdir=runs/x"] if words[1] == "preview" else [])])
        if not any(word.startswith("--data=folder") for word in words):
            validate.validate(read)
    elif hasattr(module, "_FLAGS"):
        commands.parse(module._FLAGS, words[1:], positional=True)


@pytest.mark.slow
def test_mkdocs_builds_it_strictly(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("MkDocs is not installed: pip install -e '.[docs]', or .ci/run docs")
    program = shutil.which("mkdocs") or str(pathlib.Path(sys.executable).parent / "mkdocs")
    done = subprocess.run(
        [program, "build", "--strict", "--site-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    home = (tmp_path / "index.html").read_text()
    assert "robust_vit" in home and "<math" in (tmp_path / "explanation/attacks/pgd/index.html").read_text()
