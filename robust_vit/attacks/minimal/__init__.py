"""Minimal-norm attacks: they look for the nearest adversarial image, so that one run answers for every radius.

    search = minimal.search("ddn", steps=100)
    found = search(keys, logits_fn, images, labels)   # found.norm [B]: the smallest change that fools; inf where none
    attack = attacks.ddn(epsilon=0.5, steps=100)      # the same walk with the signature of every attack

`evaluation.security_curve` draws robust accuracy at every radius from `found.norm`.
"""

from collections.abc import Callable

from robust_vit.attacks.minimal import carlini as _carlini
from robust_vit.attacks.minimal import ddn as _ddn
from robust_vit.attacks.minimal import deepfool as _deepfool
from robust_vit.attacks.minimal import fmn as _fmn
from robust_vit.attacks.minimal import pdpgd as _pdpgd
from robust_vit.attacks.minimal import sigma_zero as _sigma_zero
from robust_vit.attacks.minimal.nearest import Found, Search, within
from robust_vit.errors import lookup

SEARCHES: dict[str, Callable[..., Search]] = {
    "cw": _carlini.search_cw,
    "ddn": _ddn.search,
    "deepfool": _deepfool.search,
    "ead": _carlini.search_ead,
    "fmn": _fmn.search,
    "pdpgd": _pdpgd.search,
    "sigma_zero": _sigma_zero.search,  # counts changed values, which is no norm of the other attacks
}


def search(name: str, **keywords) -> Search:
    """Makes the search `name`; keywords are those of its attack, without `epsilon`.

    Raises:
      ValueError: for an unknown name or a bad keyword.
    """
    return lookup("search", name, SEARCHES)(**keywords)


__all__ = ["SEARCHES", "Found", "Search", "search", "within"]
