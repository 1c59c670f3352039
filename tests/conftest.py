"""Every test runs on 8 virtual CPU devices, with key-reuse checks, exact matrix products, and a kept compile cache."""

import importlib.metadata
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# XLA's newer emitters of fused loops take almost half of all compilation time; CI's slow job runs with them.
if "fusion_emitters" not in (given := os.environ.get("XLA_FLAGS", "")):
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # another version may not know the flag
        os.environ["XLA_FLAGS"] = f"{given} --xla_cpu_use_fusion_emitters=false".strip()

import robust_vit  # noqa: F401  first: it sets XLA_FLAGS

import hypothesis  # isort: skip
import jax  # isort: skip
import pytest  # isort: skip
from drawing import EXPLORE  # isort: skip

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compilation is most of the time here: without LLVM's expensive passes the suite takes about half as long.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

# Every run draws the same examples, so that its verdict is of the change and not of luck; CI's slow job explores.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile(EXPLORE, derandomize=False, deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("same")


# What took more than two seconds on two slow cores, by `pytest --durations=0`, a test a line: slow as well.
SLOWER = frozenset((pathlib.Path(__file__).parent / "slower.txt").read_text().splitlines())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.removeprefix("tests/") in SLOWER:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def key():
    """A fresh key; derive from it with fold_in or split."""
    return jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def rank_promotion(request):
    """The package says where a rank is added; models of users need not, and a module of tests that is one says
    `RANK_PROMOTION = "allow"`.
    """
    jax.config.update("jax_numpy_rank_promotion", getattr(request.module, "RANK_PROMOTION", "raise"))
    yield
    jax.config.update("jax_numpy_rank_promotion", "raise")
