"""docs/recipes.md says what docs/recipes.json holds, and each row's command is one that can be typed."""

import importlib.util
import json
import pathlib

import pytest

from robust_vit.main import parse
from robust_vit.training import validate

ROOT = pathlib.Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("benchmark_recipes", ROOT / "benchmarks" / "recipes.py")
recipes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipes)

REPORT = json.loads(recipes.RESULTS.read_text())
PAGE = recipes.PAGE.read_text()
RUNS = [(row, run) for row, runs in REPORT["rows"].items() for run in runs]


def test_the_page_is_written_from_its_json():
    assert REPORT["rows"] and PAGE == recipes.written(PAGE, REPORT)


def test_every_row_is_measured_by_the_command_that_the_page_shows():
    for row, run in RUNS:
        typed = ["robust-vit", *recipes.command(row, run["seed"])]
        assert run["command"] == " ".join(typed)
        assert run["seed"] != REPORT["rows"][row][0]["seed"] or run["command"] in PAGE
        config, own = parse(typed[1:])
        validate.validate(config)
        assert config.seed == run["seed"] and own.workdir == f"runs/{row}-{run['seed']}"
        assert config.data.name == "digits" and config.attack.norm == "linf" and config.attack.epsilon == 0.1
        assert config.evaluation.suite == "clean,autoattack" and recipes.forwards(config) > 0


def test_seeds_are_counted_once_and_splits_are_whole():
    for runs in REPORT["rows"].values():
        assert len({run["seed"] for run in runs}) == len(runs)
    for _, run in RUNS:
        assert run["clean"]["examples"] == run["autoattack"]["examples"] == 360
        assert 0 <= run["autoattack"]["correct"] <= run["clean"]["correct"] <= 360


@pytest.mark.parametrize(
    ("arguments", "passes"),
    [
        ("--config=digits:adversarial", 40 * (7 * 2 + 3)),
        ("--config=digits:trades", 40 * (1 + 7 * 2 + 6)),
        ("--config=digits:standard", 40 * 3),
        ("--config=digits:adversarial --config.awp.gamma=0.01 --config.attack.steps=2", 40 * (2 * 2 + 6)),
    ],
)
def test_cost_is_counted_in_forward_passes(arguments, passes):
    assert recipes.forwards(parse(["train", *arguments.split(), "--workdir=runs/x"])[0]) == passes


def test_an_uncounted_attack_is_named():
    config = parse(["train", "--config=digits", "--config.attack.name=square", "--workdir=runs/x"])[0]
    with pytest.raises(ValueError, match="^attack.name = 'square': must be one of pgd"):
        recipes.forwards(config)


def test_the_median_has_its_own_interval_and_an_even_number_of_seeds_takes_the_lower():
    runs = [{"seed": seed, "clean": {"correct": k, "examples": 360}} for seed, k in enumerate((350, 358, 356))]
    assert recipes.middle(runs, "clean")["correct"] == 356 and recipes.middle(runs[:2], "clean")["correct"] == 350
    assert recipes.accuracy(runs, "clean") == ("98.89 %", "97.2 – 99.6")


def test_only_what_stands_between_the_marks_is_written_anew():
    page = "Before.\n\n<!-- tried: begin -->\nold\n<!-- tried: end -->\n\nAfter.\n"
    written = recipes.filled(page, "tried", "new")
    assert "new" in written and written.replace("new", "old") == page
