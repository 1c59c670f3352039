"""The second source of training: generated or pseudo-labelled images, a fixed share of every batch.

    extra = data.Extra("npz", {"path": "cifar10_ddpm.npz"}, ratio=0.7)
    dataset = data.build("tfds", dataset="cifar10", extra=extra)

It is trained on and never measured: validation and test are the first source's. See `pipeline.train` for the order.

Reference: Gowal et al., Improving Robustness using Generated Data, NeurIPS 2021, arXiv 2110.09468; Rebuffi et al., Data
Augmentation Can Improve Robustness, NeurIPS 2021, arXiv 2111.05328; Wang et al., Better Diffusion Models Further
Improve Adversarial Training, ICML 2023, arXiv 2302.04638.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from robust_vit.data import sources
from robust_vit.errors import check
from robust_vit.typing import Source


@dataclasses.dataclass(frozen=True)
class Extra:
    """A second source, opened when first asked for.

    Attributes:
      name: of the source: `sources.names()`; its training split is taken, of npz also a single file as a whole.
      options: of the source.
      ratio: its share of a batch, in (0, 1).

    Raises:
      ValueError: for an unknown name or option, or a ratio outside (0, 1).
    """

    name: str
    options: dict[str, Any]
    ratio: float

    def __post_init__(self) -> None:
        with renamed():
            sources.check_options(self.name, self.options)
        check("data.extra.ratio", self.ratio, 0 < self.ratio < 1, "in (0, 1) with data.extra.name")

    @functools.cached_property
    def source(self) -> Source:
        with renamed():
            return sources.build(self.name, "train", **self.options)


@contextlib.contextmanager
def renamed() -> Iterator[None]:
    """Lets errors of a source name the fields as the configuration does."""
    try:
        yield
    except ValueError as error:
        said = str(error).replace("data.name", "data.extra.name").replace("data.options", "data.extra.options")
        raise ValueError(said) from None
