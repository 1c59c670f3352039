"""The notebooks: they are whole, what they hold is of the code they show, and (slow) they run from end to end."""

import ast
import functools
import importlib.util
import json
import pathlib
import re
import sys

import pytest

import robust_vit as rv

ROOT = pathlib.Path(__file__).parent.parent
FILES = {path.stem: path for folder in ("notebooks", "launch/colab") for path in (ROOT / folder).glob("*.ipynb")}
WANTED = ("attack_a_vit", "train_a_robust_one", "is_it_really_robust", "attention_under_attack", "bring_your_own_model")


@functools.cache
def cells(name):
    return json.loads(FILES[name].read_text())["cells"]


def code(name):
    return ["".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "code"]


def test_all_of_them_are_there():
    assert [any(name.endswith(wanted) for name in FILES) for wanted in WANTED] == [True] * 5 and "robust_vit" in FILES


@pytest.mark.parametrize("name", FILES)
def test_a_notebook_is_prose_next_to_code(name):
    whole = json.loads(FILES[name].read_text())
    assert whole["nbformat"] == 4 and whole["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in whole["cells"]}) == len(whole["cells"])
    first = "".join(whole["cells"][0]["source"])
    assert whole["cells"][0]["cell_type"] == "markdown" and first.startswith("# ")
    prose = sum(cell["cell_type"] == "markdown" for cell in whole["cells"])
    assert len(code(name)) / 3 < prose and max(len(source.splitlines()) for source in code(name)) <= 30
    for source in code(name):
        assert not re.search(r"^[%!]", source, re.MULTILINE), "plain Python, so that it runs anywhere"
        ast.parse(source)


@pytest.mark.parametrize("name", FILES)
def test_every_name_of_the_library_that_it_uses_exists(name):
    """Chains such as `rv.evaluation.masking.report` are looked up; what they are called with is seen when it runs."""
    chains = {
        ast.unparse(node)
        for source in code(name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("rv.")
    }
    assert len(chains) > 3
    for chain in chains:
        found = rv
        for part in chain.split("(")[0].split(".")[1:]:
            found = getattr(found, part)


@pytest.mark.parametrize("name", FILES)
def test_what_it_holds_is_of_the_code_that_it_shows(name):
    """Stored outputs carry the digest of the code that made them; without outputs there is none to be stale."""
    whole = json.loads(FILES[name].read_text())
    outputs = [output for cell in whole["cells"] for output in cell.get("outputs", [])]
    stored = whole["metadata"].get("executed")
    if outputs or stored:
        assert stored == digest(code(name)), f"run it again: python notebooks/run.py {name}"
        assert not [output for output in outputs if output["output_type"] == "error"]


def digest(sources):
    """As `notebooks/run.py` takes it."""
    import hashlib

    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_it_runs(name):
    for package in ("nbclient", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[notebooks]'")
    sys.path.insert(0, str(ROOT / "notebooks"))
    try:
        import run
    finally:
        sys.path.pop(0)
    done = run.execute(FILES[name])
    assert run.digest(done) == digest(code(name))
    shown = [output.get("data", {}) for cell in done.cells for output in cell.get("outputs", [])]
    drawn = any("image/png" in data for data in shown)
    assert drawn or name.startswith("05")
