"""The batch that every objective is tried on."""

import objective_case
import pytest


@pytest.fixture
def case():
    """A fresh `Case`: it counts what happens to it."""
    return objective_case.make()
