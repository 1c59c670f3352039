"""The version "fast": a cheap loss, near classes, a short search; compared from above with the whole ensemble."""

from robust_vit.evaluation import suites
from robust_vit.evaluation.autoattack import ensembles
from robust_vit.evaluation.suites.autoattack import CHEAP


def test_its_parts_cost_a_fraction_of_the_whole_one():
    fast, whole = (ensembles.parts(version, "linf") for version in ("fast", "standard"))
    assert [(p.name, p.steps) for p in fast] == [("apgd-pma", 50), ("apgd-malt", 50), ("square", 1000)]
    steps = [sum(p.steps * len(p.items) for p in parts) for parts in (fast, whole)]
    assert steps[0] < steps[1] / 3 and fast[0].loss == "probability_margin"


def test_it_is_a_suite_and_stands_between_quick_and_the_whole():
    assert "fast" in suites.SUITES and "fast" in suites.CHECKS and "fast" in suites.OWN_CANARY
    assert CHEAP["fast"] == ("quick",) and CHEAP[""] == ("quick", "fast") and CHEAP["quick"] == ()
