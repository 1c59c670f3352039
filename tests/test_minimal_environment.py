"""Attacks, models, objectives and evaluation work where only jax, flax, optax and numpy are installed."""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import venv

import pytest

CORE = ("jax", "flax", "optax", "numpy")

# Used by the blocked process and by the real environment alike.
PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
import robust_vit as rv

model = rv.models.build("vit", depth=1, width=16, heads=2, patch_size=4, image_size=8, channels=1, num_classes=4)
variables = rv.models.init(model, jax.random.key(0))
classifier = rv.Classifier(rv.models.logits_fn(model, variables), threat=rv.Threat("linf", 8 / 255))
images = np.asarray(jax.random.uniform(jax.random.key(1), (4, 8, 8, 1)))
labels = classifier.predict(images)

adversarial = classifier.attack("pgd", images, labels, steps=2)
assert 0 < np.abs(adversarial - images).max() <= 8 / 255 + 1e-6

result = rv.evaluation.autoattack(
    classifier, images, labels, **classifier.threat.keywords, version=["square"], budget=0.001
)
assert result.examples == 4

keys = jax.random.split(jax.random.key(2), 4)
objective = rv.objectives.build("trades", beta=6.0)
attack = rv.attacks.build("pgd", **classifier.threat.keywords, steps=1)
forward = lambda images, statistics: (classifier(images), statistics)
outcome = objective(forward, {}, classifier, attack, keys, jnp.asarray(images), jax.nn.one_hot(labels, 4))
assert outcome.loss.shape == (4,) and np.all(np.isfinite(outcome.loss))
"""

BLOCK = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        away = name.partition(".")[0] in {blocked!r}
        return None if away or not hasattr(self.finder, "find_spec") else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def requirements(name: str, seen: frozenset = frozenset()) -> frozenset:
    """A package with everything that it needs itself, extras left out."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in seen:
        return seen
    try:
        needed = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return seen
    seen |= {name}
    for line in needed:
        if "extra ==" not in line:
            seen = requirements(re.match(r"[\w.-]+", line)[0], seen)
    return seen


def modules_outside(kept: frozenset) -> set[str]:
    """The top-level modules of all installed packages but those kept, and but this one."""
    owners = importlib.metadata.packages_distributions()
    normal = {module: {re.sub(r"[-_.]+", "-", name).lower() for name in names} for module, names in owners.items()}
    return {module for module, names in normal.items() if not names & (kept | {"robust-vit"})}


def blocked() -> set[str]:
    """What `flax` declares is not all that the four need: orbax and its like are left out where flax runs without."""
    kept = frozenset().union(*(requirements(name) for name in CORE))
    return modules_outside(kept) - {"pip", "setuptools", "pkg_resources", "_distutils_hack", "robust_vit"}


def run(python: str | pathlib.Path, program: str) -> subprocess.CompletedProcess:
    """Runs a program against this checkout, compiled as quickly as the tests themselves."""
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**os.environ, **quick, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(pathlib.Path.cwd())}
    return subprocess.run(
        [str(python), "-c", program], env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def test_only_what_the_four_packages_need_is_imported():
    away = blocked()
    assert {"grain", "ml_collections", "matplotlib", "sklearn", "PIL", "tensorflow_datasets", "chex"} <= away
    done = run(sys.executable, BLOCK.format(blocked=away) + PROGRAM)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_an_environment_of_its_own_will_do(tmp_path):
    """As a user would make it; needs a package index."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in CORE]
    made = subprocess.run(
        [python, "-m", "pip", "install", "-q", *versions], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"pip can install nothing here: {made.stderr.strip().splitlines()[-1]}")
    done = run(python, PROGRAM)
    assert done.returncode == 0, done.stderr[-2000:]
    absent = "import importlib.util as u; print([n for n in ('grain', 'matplotlib', 'sklearn') if u.find_spec(n)])"
    assert run(python, absent).stdout.strip() == "[]"
