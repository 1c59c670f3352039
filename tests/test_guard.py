"""The flag that keeps jaxlib's wrong reductions away is set in time, added to what is there, or missed loudly."""

import os
import subprocess
import sys

import jax
import pytest

from robust_vit import guard


def python(program, flags=None):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | ({"XLA_FLAGS": flags} if flags else {})
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("version", "needed"),
    [
        ("0.10.1", False),
        ("0.10.2", True),
        ("0.10.2.dev3", True),
        ("0.11.0", True),
        ("0.11.1", False),
        ("0.12.0", False),
    ],
)
def test_which_versions_need_the_flag(version, needed):
    assert guard.needed(version) is needed


@pytest.fixture
def old_jaxlib(monkeypatch):
    monkeypatch.setattr(guard.importlib.metadata, "version", lambda name: "0.10.2")
    monkeypatch.setattr(guard, "_started", lambda: False)


@pytest.mark.parametrize(
    ("given", "after"),
    [
        ("", guard.FLAG),
        ("--xla_dump_to=/tmp/x", f"--xla_dump_to=/tmp/x {guard.FLAG}"),
        (f"--{guard.NAME}=", f"--{guard.NAME}="),  # the user's own choice stands
    ],
)
def test_it_is_added_to_the_users_own_flags(given, after, old_jaxlib, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", given)
    guard.install()
    assert os.environ["XLA_FLAGS"] == after


def test_jax_that_started_without_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    monkeypatch.setattr(guard.importlib.metadata, "version", lambda name: "0.10.2")
    jax.devices()
    with pytest.raises(RuntimeError, match="import robust_vit first, or set XLA_FLAGS") as error:
        guard.install()
    assert "\n" not in str(error.value)


def test_importing_the_package_sets_it_and_starts_nothing():
    program = (
        "import os, sys, robust_vit; from robust_vit import guard; import importlib.metadata as m\n"
        "assert 'jaxlib' not in sys.modules, 'JAX was started'\n"
        "assert (guard.FLAG in os.environ.get('XLA_FLAGS', '')) == guard.needed(m.version('jaxlib'))\n"
        "import jax; assert jax.numpy.ones(3).sum() == 3"
    )
    done = python(program)
    assert done.returncode == 0, done.stderr
