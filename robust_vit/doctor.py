"""Is this installation fit to compute? python -m robust_vit.doctor

Prints versions, devices and memory, runs the programs that known versions of XLA compute wrongly, and compares matrix
products, attention and convolution, forward and input gradient, with float64 on the host. One line a check; the exit
status is 0 if all pass and 1 if one fails.
"""

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from robust_vit import commands, guard

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml-collections", "chex")
ROWS = 40_001  # past 32,768, where jaxlib 0.10.2 begins to err
MATRIX, IMAGE = 257, 33  # odd sizes, so that every kernel has a tail to get wrong
# Largest difference to float64, relative to the largest value. Float32 sums of some hundred products lie near 1e-6;
# the wrong programs this looks for are wrong in the first digit.
TOLERANCE = 2e-5
CRASH_TIMEOUT_S = 120


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the examination: `passed` is None where there is nothing to fail."""

    name: str
    passed: bool | None
    saw: str

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "    "}[self.passed]
        return f"{mark}  {self.name:22s} {self.saw}"


def versions() -> Check:
    """The packages that figures depend on."""
    found = [f"{name} {_version(name)}" for name in PACKAGES]
    return Check("versions", None, f"python {platform.python_version()}, " + ", ".join(found))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def devices() -> Check:
    """What JAX computes on."""
    import jax

    found = jax.devices()
    return Check("devices", bool(found), f"{len(found)} x {found[0].device_kind} ({found[0].platform})")


def memory() -> Check:
    """Free memory of the host and of the first device, as far as they tell."""
    import jax

    host = "unknown"
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        host = f"{os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB free"
    told = jax.devices()[0].memory_stats() or {}
    device = f", device {told['bytes_limit'] / 2**30:.1f} GiB" if "bytes_limit" in told else ""
    disk = shutil.disk_usage(".").free / 2**30
    return Check("memory", None, f"host {host}{device}, disk here {disk:.1f} GiB free")


def flags() -> Check:
    """Whether the flag that keeps wrong reductions away is set where it is needed."""
    needed = guard.needed(_version("jaxlib"))
    given = os.environ.get("XLA_FLAGS", "")
    if not needed:
        return Check("XLA_FLAGS", True, f"{given!r}: this jaxlib needs none")
    return Check("XLA_FLAGS", guard.NAME in given, f"{given!r}: this jaxlib needs {guard.FLAG} on CPU")


def _difference(found: Any, expected: Any) -> float:
    import numpy as np

    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _compared(name: str, found: Any, expected: Any, tolerance: float = TOLERANCE) -> Check:
    worst = max(_difference(f, e) for f, e in zip(found, expected, strict=True))
    return Check(name, worst <= tolerance, f"largest difference to float64 {worst:.1e}, allowed {tolerance:.0e}")


def _draws(*shapes: tuple[int, ...]) -> list[Any]:
    import numpy as np

    generator = np.random.default_rng(0)
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


def row_sums() -> Check:
    """jax-ml/jax issue 39103: squared sums of many short rows."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    m, rows = _draws((3, 3), (ROWS, 3))
    found = np.asarray(jax.jit(jax.vmap(lambda row: jnp.sum((m @ row) ** 2)))(rows), np.float64)
    expected = np.sum((rows.astype(np.float64) @ m.T.astype(np.float64)) ** 2, axis=1)
    # bfloat16 products of accelerators err by 1e-2; a wrong row errs by as much as it is large
    wrong = int(np.sum(~(np.abs(found - expected) <= 5e-2 * np.maximum(expected, 1e-2))))
    return Check("sums of short rows", wrong == 0, f"{wrong} of {ROWS} rows wrong (jax-ml/jax issue 39103)")


SEGFAULT = """
import robust_vit, jax, jax.numpy as jnp
x = jnp.ones((3, 1, 2, 2, 8, 8, 8))
assert (jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(x, x) == 2).all()
"""


def high_rank() -> Check:
    """jax-ml/jax issue 40412: a reduction of rank 7 that kills the process, so another process runs it."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", SEGFAULT], env=environment, capture_output=True, timeout=CRASH_TIMEOUT_S, check=False
        )
        status = done.returncode
    except subprocess.TimeoutExpired:
        status = -1
    return Check("sums of rank 7", status == 0, f"exit status {status} (jax-ml/jax issue 40412)")


def matrix_product() -> Check:
    """a @ b and its gradient."""
    import jax
    import numpy as np

    a, b, g = _draws((MATRIX, MATRIX), (MATRIX, MATRIX), (MATRIX, MATRIX))
    with jax.default_matmul_precision("highest"):
        out, pull = jax.vjp(jax.jit(lambda a, b: a @ b), a, b)
        found = out, *pull(g)
    a, b, g = (x.astype(np.float64) for x in (a, b, g))
    return _compared("matrix product", found, (a @ b, g @ b.T, a.T @ g))


def attention() -> Check:
    """softmax(q k^T / sqrt(d)) v as the models compute it, and its gradient, against JAX's own in float64."""
    import jax
    import jax.numpy as jnp

    from robust_vit.models.parts import attention as parts

    q, k, v, g = _draws(*[(2, 3, 37, 16)] * 4)  # [B,A,N,D]

    def reference(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("baqd,bakd->baqk", q, k) / 4.0
        return jnp.einsum("baqk,bakd->baqd", jax.nn.softmax(scores, axis=-1), v)

    return _against_float64(
        "attention", lambda q, k, v: parts.einsum_attention(q, k, v, None)[0], reference, (q, k, v), g
    )


def convolution() -> Check:
    """A 3x3 convolution and its gradient, against JAX's own in float64."""
    import jax

    x, w, g = _draws((2, IMAGE, IMAGE, 5), (3, 3, 5, 7), (2, IMAGE, IMAGE, 7))

    def conv(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return _against_float64("convolution", conv, conv, (x, w), g)


def _against_float64(name: str, function: Any, reference: Any, arguments: Sequence[Any], g: Any) -> Check:
    """Compares values and gradients of the compiled float32 `function` with the plain float64 `reference` on CPU."""
    import jax
    import numpy as np

    def both(f: Callable[..., Any], inputs: Sequence[Any], g: Any) -> tuple[Any, ...]:
        out, pull = jax.vjp(f, *inputs)
        return out, *pull(g)

    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda *x: both(function, x[:-1], x[-1]))(*arguments, g)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]), jax.disable_jit():
        expected = both(reference, [np.asarray(x, np.float64) for x in arguments], np.asarray(g, np.float64))
    return _compared(name, found, expected)


CHECKS: tuple[Callable[[], Check], ...] = (
    versions,
    devices,
    memory,
    flags,
    row_sums,
    high_rank,
    matrix_product,
    attention,
    convolution,
)


def examine() -> list[Check]:
    """Runs every check; one that raises has failed, and says why."""
    found = []
    for check in CHECKS:
        try:
            found.append(check())
        except Exception as error:
            found.append(Check(check.__name__, False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
    return found


def doctor(arguments: Sequence[str]) -> list[Check]:
    """Prints the examination, line by line as it goes; exits with status 1 if a check fails."""
    if commands.wants_help(arguments):
        return print(__doc__) or []
    if arguments[1:]:
        raise ValueError(f"arguments = {list(arguments[1:])}: the doctor takes none")
    found = examine()
    print("\n".join(map(str, found)))
    failed = [check.name for check in found if check.passed is False]
    print(f"not fit: {', '.join(failed)}" if failed else "fit: every check passed")
    if failed:
        sys.exit(1)
    return found


def main(arguments: Sequence[str]) -> list[Check]:
    """Runs the command."""
    return commands.run(doctor, arguments)


if __name__ == "__main__":
    main(sys.argv)
