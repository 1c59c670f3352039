"""AutoAttack by several hosts: each attacks its share of the points and keeps a ledger, and the ledgers are joined.

Every host has all points and takes every n-th. Tiles are those of the whole (`everywhere`), so that the flags are those
of one process. The first host joins the ledgers into one, from which the evaluation is then read as a resumed one is:
images are verified again, nothing is attacked again. A kill costs what each ledger had not written; the same command on
as many hosts goes on.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from robust_vit import parallel
from robust_vit.errors import check
from robust_vit.evaluation.autoattack import ledger as books
from robust_vit.evaluation.autoattack.driver import autoattack
from robust_vit.evaluation.autoattack.results import Result


def autoattack_over_hosts(
    logits_fn: Any, images: np.ndarray, labels: np.ndarray, *, workdir: pathlib.Path | None, **keywords: Any
) -> Result | None:
    """Runs `autoattack` on every host of the job; all of them have to call it.

    Args:
      logits_fn: the model, the same everywhere; its weights on this host's devices.
      images, labels: all points, on every host.
      workdir: a folder that all hosts see; each keeps its ledger in `hosts/`.
      **keywords: of `autoattack`; `mesh` is of this host's devices.

    Returns:
      The result on the first host, None on the others.

    Raises:
      ValueError: as `autoattack`, or if there is no folder or there are fewer points than hosts.
    """
    hosts, host, count = jax.process_count(), jax.process_index(), len(labels)
    check("workdir", workdir, workdir is not None, f"given: the folder of the ledgers of {hosts} hosts")
    check("points", count, count >= hosts, f"at least one for each of {hosts} hosts")
    indices = keywords.pop("indices", None)
    indices, epsilon = np.arange(count) if indices is None else indices, keywords.pop("epsilon", None)
    own, shares = np.arange(host, count, hosts), [_folder(workdir, one, hosts) for one in range(hosts)]
    share = {"indices": indices[own], "epsilon": epsilon if np.ndim(epsilon) == 0 else np.asarray(epsilon)[own]}
    share |= {"workdir": shares[host], "everywhere": _everywhere}
    autoattack(logits_fn, images[own], labels[own], **share, **keywords)
    parallel.agree(True)  # all ledgers are complete
    if not parallel.is_main():
        return None

    def joined(header: dict[str, Any]) -> books.Ledger:
        return books.join(workdir, header, shares)

    return autoattack(
        logits_fn, images, labels, indices=indices, epsilon=epsilon, workdir=workdir, open_ledger=joined, **keywords
    )


def _folder(workdir: pathlib.Path, host: int, hosts: int) -> pathlib.Path:
    return pathlib.Path(workdir) / "hosts" / f"{host}-of-{hosts}"


def _everywhere(count: int) -> int:
    return int(parallel.gather_rows(np.asarray([count])).sum())
