"""docs/recipes.md says what docs/recipes.json holds, and each row's command is one that can be typed."""

import json
import pathlib
import sys

import pytest

from robust_vit import config as config_lib
from robust_vit.main import parse
from robust_vit.training import validate
from robust_vit.training.cost import forwards

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # a script is read from beside its own parts

import recipe_rows as rows  # noqa: E402
import recipe_tables as tables  # noqa: E402
import recipes  # noqa: E402

REPORT = json.loads(recipes.RESULTS.read_text())
PAGE = recipes.PAGE.read_text()
RUNS = [(row, run) for row, runs in REPORT["rows"].items() for run in runs]
VARIANTS = [(name, variant, runs) for name, of in REPORT["sweeps"].items() for variant, runs in of.items()]


def parsed(command):
    """The configuration that a command makes, checked, but for what it begins from; and its run folder."""
    config, own = parse(command.split()[1:])
    with config.unlocked():
        config.initial.weights, config.initial.checkpoint = "", "best"
    validate.validate(config)
    return config, own.workdir


def test_the_page_is_written_from_its_json():
    assert REPORT["rows"] and PAGE == tables.written(PAGE, REPORT)


def test_every_row_is_measured_by_the_command_that_the_page_shows():
    for row, run in RUNS:
        typed = ["robust-vit", *rows.command(row, run["seed"])]
        assert run["command"] == " ".join(typed)
        assert run["seed"] != REPORT["rows"][row][0]["seed"] or run["command"] in PAGE
        config, workdir = parsed(run["command"])
        assert config.seed == run["seed"] and workdir == f"runs/{row}-{run['seed']}"
        assert config.data.name == "digits" and config.attack.norm == "linf" and config.attack.epsilon == 0.1
        assert config.evaluation.suite == "clean,autoattack" and run["cost"] > 0
        assert bool(run["begun"]) == bool(rows.begins(row))


def test_every_variant_is_measured_by_the_command_of_its_sweep():
    for name in REPORT["sweeps"]:
        planned = {(run.variant, run.config.seed): run for s in (0, 1, 2) for run in rows.variants(name, s)}
        for variant, run in ((variant, run) for of, variant, runs in VARIANTS if of == name for run in runs):
            plan = planned.pop((variant, run["seed"]))
            assert run["command"] == " ".join(plan.command()) and run["cost"] > 0
            assert plan.config.evaluation.suite == "clean,autoattack" and plan.config.attack.epsilon == 0.1


def test_seeds_are_counted_once_and_splits_are_whole():
    every = [*REPORT["rows"].values(), *(runs for _, _, runs in VARIANTS)]
    for runs in every:
        assert len({run["seed"] for run in runs}) == len(runs)
    for run in (run for runs in every for run in runs):
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
    assert forwards(parse(["train", *arguments.split(), "--workdir=runs/x"])[0]) == pytest.approx(passes, rel=1e-12)


def test_an_uncounted_attack_is_named():
    config = parse(["train", "--config=digits", "--config.attack.name=square", "--workdir=runs/x"])[0]
    with pytest.raises(ValueError, match="^attack.name = 'square': must be one of pgd"):
        forwards(config)


def small():
    """What configs/ablations/small_digits.py names as methods, with the passes that it says of each."""
    module = config_lib._module(rows.SMALL)[2]
    return module.BUDGET, module.METHODS, module.HALVES


def test_every_method_of_the_small_model_has_a_row():
    _, methods, halves = small()
    assert set(rows.METHODS) == {*methods, *halves}
    assert {row.begins for row in rows.METHODS.values()} | {row.teacher for row in rows.METHODS.values()} - {""} <= {
        *rows.METHODS,
        "",
    }


def test_a_row_runs_what_it_needs_first():
    assert rows.needs("small/fare") == ["small/natural"] and rows.needs("small/hat") == ["small/standard"]
    assert "--config.initial.weights=runs/small/natural-2" in rows.command("small/fare", 2)
    assert "small/painted" not in rows.chosen("small") and "small/painted_hardened" in rows.chosen("small,best")


def test_a_row_that_fails_costs_no_other_and_what_is_measured_stays(tmp_path, monkeypatch):
    def measure(row, seed, runs):
        if row == "small/mart":
            raise ValueError("no")
        return {"seed": seed, "row": row}

    results = tmp_path / "found.json"
    results.write_text(json.dumps({"rows": {"small/trades": [{"seed": 0, "row": "kept"}]}}))
    monkeypatch.setattr(recipes, "measure", measure)
    asked = "--rows=small/trades,small/mart,small/hat --seeds=1,0".split()
    monkeypatch.setattr(sys, "argv", ["recipes.py", f"--results={results}", *asked])
    with pytest.raises(SystemExit, match="small/mart, seed 1: no\nsmall/mart, seed 0: no"):
        recipes.main()
    found = json.loads(results.read_text())["rows"]
    assert found["small/trades"] == [{"seed": 0, "row": "kept"}, {"seed": 1, "row": "small/trades"}]
    assert [run["seed"] for run in found["small/hat"]] == [0, 1] and PAGE == recipes.PAGE.read_text()


def spends(name, passes, budget):
    """Whether a method costs what it says, and spends what all may."""
    needs = ["--config.objective.teacher=t"] if rows.METHODS[name].teacher else []
    config = parse(["train", f"--config={rows.SMALL}:{name}", *needs, "--workdir=runs/x"])[0]
    spent = forwards(config)
    assert spent / config.training.epochs == pytest.approx(passes, rel=0.005), name
    assert spent == pytest.approx(budget, rel=0.05), name


@pytest.mark.parametrize("name", ["staged"])
def test_methods_spend_the_budget(name):
    budget, methods, _ = small()
    spends(name, methods[name][1], budget)


@pytest.mark.slow
def test_all_methods_spend_the_budget():
    budget, methods, halves = small()
    for name in methods:
        spends(name, methods[name][1], budget)
    for name in halves:
        spends(name, halves[name][1], budget / 2)


def test_the_median_has_its_own_interval_and_an_even_number_of_seeds_takes_the_lower():
    runs = [{"seed": seed, "clean": {"correct": k, "examples": 360}} for seed, k in enumerate((350, 358, 356))]
    assert tables.middle(runs, "clean")["correct"] == 356 and tables.middle(runs[:2], "clean")["correct"] == 350
    assert tables.accuracy(runs, "clean") == ("98.89 %", "97.2 – 99.6")


def test_only_what_stands_between_the_marks_is_written_anew():
    page = "Before.\n\n<!-- tried: begin -->\nold\n<!-- tried: end -->\n\nAfter.\n"
    written = tables.filled(page, "tried", "new")
    assert "new" in written and written.replace("new", "old") == page
