"""What CONTRIBUTING.md, SECURITY.md and CITATION.cff say of the tree is so."""

import importlib
import pathlib
import re

import pytest
import yaml

import robust_vit as rv

PAGES = {name: pathlib.Path(name).read_text() for name in ("CONTRIBUTING.md", "SECURITY.md")}
# Where a new part is entered, as CONTRIBUTING.md says it: `TABLE` of `file`.
TABLES = re.findall(r"`([A-Z]+)` of\s+`(?:robust_vit/)([\w/]+)\.py`", PAGES["CONTRIBUTING.md"])


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_it_names_exists(page):
    names = set(re.findall(r"(?<![\w/])((?:robust_vit|tests|docs|\.ci)/[\w/.]*)", PAGES[page]))
    assert names and [name for name in names if not pathlib.Path(name.rstrip(".")).exists()] == []


def test_every_table_that_it_names_is_there():
    assert len(TABLES) == 6
    for table, file in TABLES:
        assert getattr(importlib.import_module(f"robust_vit.{file.removesuffix('/__init__').replace('/', '.')}"), table)


@pytest.mark.parametrize(
    ("table", "file"),
    [
        (rv.attacks.ATTACKS, "robust_vit/attacks/fgsm.py"),
        (rv.attacks.ATTACKS, "robust_vit/attacks/pgd.py"),
        (rv.objectives.OBJECTIVES, "robust_vit/objectives/trades.py"),
        (rv.evaluation.suites.SUITES, "robust_vit/evaluation/suites/measured.py"),
        (rv.models.MODELS, "robust_vit/models/families/vit.py"),
    ],
)
def test_every_example_is_one(table, file):
    module = file.removesuffix(".py").replace("/", ".")
    assert file in PAGES["CONTRIBUTING.md"]
    assert module in {getattr(made, "func", made).__module__ for made in table.values()}


def test_the_commands_of_the_fast_loop_name_tests_and_marks_that_are_there():
    commands = re.findall(r"-m pytest ([^#\n]*)", PAGES["CONTRIBUTING.md"])
    paths = [word for command in commands for word in command.split() if word.startswith("tests")]
    assert len(commands) == 5 and paths and all(pathlib.Path(path).exists() for path in paths)
    markers = pathlib.Path("pyproject.toml").read_text()
    assert '"slow:' in markers and '"peers:' in markers


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load(pathlib.Path("CITATION.cff").read_text())
    assert citation["version"] == rv.__version__ and citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
