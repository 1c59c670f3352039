"""`import robust_vit as rv` is quick, starts no JAX, and has every room as an attribute."""

import inspect
import subprocess
import sys
import time

import pytest

import robust_vit as rv


def run(code: str) -> str:
    """Runs a program in a fresh Python and returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_starts_nothing():
    heavy = ("jax", "numpy", "flax", "optax", "orbax", "grain", "matplotlib", "rich", "ml_collections", "absl")
    code = f"import robust_vit, sys; print([name for name in {heavy} if name in sys.modules])"
    began = time.perf_counter()
    assert run(code).strip() == "[]"
    assert time.perf_counter() - began < 5  # a bare start takes a tenth of a second; JAX alone would take several


@pytest.mark.parametrize("name", rv.__all__)
def test_every_name_is_there(name):
    found = getattr(rv, name)
    assert name in dir(rv)
    assert inspect.ismodule(found) == (name in rv._MODULES)
    assert (found.__doc__ or "").strip()


def test_every_module_of_a_room_is_there():
    found = run(
        "import robust_vit as rv, pkgutil\n"
        "for room in (rv.analysis, rv.evaluation, rv.training):\n"
        "    names = [module.name for module in pkgutil.iter_modules(room.__path__)]\n"
        "    print(all(hasattr(room, name) and name in dir(room) for name in names) and len(names))"
    )
    assert all(int(count) >= 2 for count in found.split()) and len(found.split()) == 3


def test_the_package_says_what_each_of_its_names_is_for():
    assert all(f"`{name}`" in rv.__doc__ or f"`{name}(" in rv.__doc__ for name in rv.__all__)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(AttributeError, match=r"no attribute 'atacks'; did you mean 'attacks'\?"):
        rv.atacks  # noqa: B018


def test_a_star_import_brings_all():
    found = run("from robust_vit import *; print(Threat('linf', 0.1), attacks.names())")
    assert found.startswith("linf-0.1 (")
