"""A norm and a radius travel together, and are written and read without loss."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_vit.attacks import norms
from robust_vit.threat import NORMS, Threat, resolve


def test_the_norms_are_those_of_the_attacks():
    assert set(NORMS) == set(norms.BALLS)


@pytest.mark.parametrize(
    ("threat", "text"),
    [
        (Threat("linf", 8 / 255), "linf-8/255"),
        (Threat("Linf", 0.1), "linf-0.1"),
        (Threat("linf", 0.2), "linf-0.2"),
        (Threat("linf", 0.5 / 255), "linf-0.5/255"),
        (Threat("l2", 0.5), "l2-0.5"),
        (Threat("l1", np.float64(12.0)), "l1-12"),
        (Threat("l2", 0), "l2-0"),
    ],
)
def test_it_is_written_as_people_write_it(threat, text):
    assert str(threat) == text and Threat.parse(text) == threat
    assert Threat.parse(threat) is threat
    assert threat.label == text.replace("-", " ").capitalize()


@given(st.sampled_from(NORMS), st.floats(0.0, 1.0))
def test_every_threat_is_read_back_exactly(norm, epsilon):
    threat = Threat(norm, epsilon)
    assert Threat.parse(str(threat)) == threat
    assert hash(Threat.parse(str(threat))) == hash(threat)


def test_its_keywords_are_plain_python():
    assert Threat("l2", np.float32(0.5)).keywords == {"norm": "l2", "epsilon": 0.5}
    assert type(Threat("l2", np.float32(0.5)).epsilon) is float


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Threat("linf", 8), r"epsilon = 8: must be at most 1 for norm linf .*8/255, not 8\)"),
        (lambda: Threat("l2", -0.5), r"epsilon = -0.5: must be a number, at least 0"),
        (lambda: Threat("l2", float("nan")), r"epsilon = nan: must be a number"),
        (lambda: Threat("l2", True), r"epsilon = True: must be a number"),
        (lambda: Threat("l2", "0.5"), r"epsilon = '0.5': must be a number"),
        (lambda: Threat("linff", 0.1), r"norm = 'linff': must be one of l1, l2, linf; did you mean 'linf'\?"),
        (lambda: Threat.parse("linf 8/255"), r"threat = 'linf 8/255': must be a norm, a dash and a radius"),
        (lambda: Threat.parse("linf-8/0"), r"threat = 'linf-8/0': must be"),
        (lambda: Threat.parse("linf-"), r"threat = 'linf-': must be"),
        (lambda: Threat.parse("l3-0.5"), r"norm = 'l3': must be one of"),
        (lambda: Threat.parse("linf-8"), r"epsilon = 8.0: must be at most 1"),
        (lambda: Threat.parse("l2--1"), r"epsilon = -1.0: must be a number, at least 0"),
    ],
)
def test_a_bad_one_is_told_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_it_stands_in_place_of_norm_and_epsilon():
    assert resolve("linf-8/255", None, None) == resolve(Threat("linf", 8 / 255), None, None) == ("linf", 8 / 255)
    assert resolve(None, "l2", 0.5) == ("l2", 0.5)
    with pytest.raises(ValueError, match="threat = 'l2-0.5': must be left out where norm and epsilon are given"):
        resolve("l2-0.5", "l2", None)
    with pytest.raises(ValueError, match="epsilon = None: must be given, or threat='linf-8/255'"):
        resolve(None, "l2", None)


def test_reading_one_starts_no_jax():
    code = (
        "import sys; from robust_vit.threat import Threat; Threat.parse('linf-8/255'); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
