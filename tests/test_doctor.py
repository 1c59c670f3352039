"""The doctor passes here, and names what it finds elsewhere."""

import dataclasses

import numpy as np
import pytest

from robust_vit import doctor


@pytest.mark.parametrize("check", doctor.CHECKS, ids=lambda check: check.__name__)
def test_this_installation_passes(check):
    found = check()
    assert found.passed in (True, None) and "\n" not in str(found), found


def test_a_failure_is_named_and_ends_with_status_1(monkeypatch, capsys):
    def wrong():
        return doctor._compared("matrix product", [np.ones(3)], [np.full(3, 1.01)])

    def raising():
        raise TypeError("two\nlines")

    monkeypatch.setattr(doctor, "CHECKS", (wrong, raising, doctor.versions))
    with pytest.raises(SystemExit) as stop:
        doctor.main(["doctor"])
    out = capsys.readouterr().out
    assert stop.value.code == 1 and "not fit: matrix product, raising" in out
    assert "FAIL  matrix product" in out and "TypeError: two lines" in out


@pytest.mark.parametrize("found", [np.full(3, np.nan), np.full(3, np.inf), np.ones(2)])
def test_no_number_and_no_shape_passes_by_accident(found):
    assert doctor._compared("x", [found], [np.ones(3)]).passed is False


def test_a_flag_that_is_needed_and_missing_fails(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "")
    assert doctor.flags().passed is False
    assert dataclasses.replace(doctor.flags(), passed=True).saw.startswith("''")
