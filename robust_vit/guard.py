"""Keeps XLA's known wrong reductions on CPU away: the one place that touches `XLA_FLAGS`.

jaxlib 0.10.2 fuses `sum(a * b)` into a YNNPACK reduction that returns uninitialised tails for some sizes (32,769 rows
of 3, and up) and crashes for some shapes of rank 7 (jax-ml/jax issues 39103, 40412, 39257). The flag below keeps
YNNPACK's matrix products and turns its reductions off. `python -m robust_vit.doctor` runs both reproducers, and every
evaluation compares its compiled program with the plain one (`evaluation.canary`).

The empty value, which turns YNNPACK off altogether, is as right and no faster: input gradients on 2 cores, `-reduce`
against empty, medians of two alternated processes: 0.036 and 0.041 s (a small ViT), 0.18 and 0.19 s (XCiT-N12), 0.76
and 0.69 s (DeiT-S), which is within what either differed from itself.
"""

import importlib.metadata
import os
import re
import sys

NAME = "xla_cpu_experimental_ynn_fusion_type"
FLAG = f"--{NAME}=-reduce"
# Versions of jaxlib that need it. 0.10.1, 0.11.1 and 0.11.2 compute both reproducers right without (Python 3.11 to
# 3.13, x86-64); so did 0.11.0 where it was tried, but it is reported wrong elsewhere, and knows the flag.
FIRST, FIXED = (0, 10, 2), (0, 11, 1)


def needed(version: str) -> bool:
    """Whether this jaxlib computes some reductions wrongly without the flag."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    return FIRST <= numbers < FIXED


def install() -> None:
    """Adds the flag to `XLA_FLAGS`, unless the user has set it, or the jaxlib at hand needs none.

    Raises:
      RuntimeError: if JAX's CPU backend is already running without it.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if NAME in given or not needed(importlib.metadata.version("jaxlib")):
        return
    if _started():
        raise RuntimeError(
            f"XLA_FLAGS = {given!r}: JAX started before robust_vit was imported, and this jaxlib computes wrong numbers"
            f" on CPU without {FLAG}; import robust_vit first, or set XLA_FLAGS={FLAG} before Python starts"
        )
    os.environ["XLA_FLAGS"] = f"{given} {FLAG}".strip()


def _started() -> bool:
    """Whether JAX already runs its CPU backend; never starts it."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized() and "cpu" in bridge.backends()
