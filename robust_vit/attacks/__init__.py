"""Attacks: pure functions that look for a misclassified image near a clean one.

    import jax
    from robust_vit import attacks

    weights = jax.random.normal(jax.random.key(0), (8 * 8 * 1, 10))  # a linear model, for the example
    logits_fn = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
    images, labels = jax.numpy.full((4, 8, 8, 1), 0.5), jax.numpy.arange(4)
    attack = attacks.pgd(norm="linf", epsilon=8 / 255, step_size=2 / 255, steps=10, keep="success")
    adversarial = jax.jit(attack)(jax.random.split(jax.random.key(1), 4), logits_fn, images, labels)

The same call works eagerly, and under `jit`, `vmap`, `scan`, `jax.pmap` and `shard_map`. The arguments of an attack:

* `keys` [B]: one typed key per example (`robust_vit.randomness.example_keys`), so that no example's result depends on
  its batch. A single key or a seed is taken too, and folded with each example's place in the batch.
* `logits_fn`: images [B,H,W,C] in [0,1] -> logits [B,K]. Make it a `jax.tree_util.Partial` whose arguments hold the
  weights (`models.logits_fn(module, variables)`): then new weights do not compile again.
* `images` [B,H,W,C]: floats in [0,1]; the result has their dtype.
* `targets`: integer labels [B] or distributions [B,K].
* `strength` in [0,1], scalar or [B]: scales epsilon and the step size without compiling again; at 0 the images come
  back bit for bit.

Adding an attack takes three steps:

1. Write `attacks/name.py` with a factory of plain keywords that returns such a function. Take from `norms` the balls
   (start, steepest step, projection), from `losses` what to maximise, from `arguments` the checks, the working
   precision and `finish`. Loop with `lax.scan` or `fori_loop`, never in Python.
2. Here: one import, one line in `ATTACKS`.
3. `tests/attacks/test_attack_contract.py` now tests it. If it is expensive at its defaults, give it a row of cheaper
   keywords there.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from robust_vit.attacks import aliases, blackbox, expectation, losses, minimal, norms, patches
from robust_vit.attacks.autoattack.apgd import apgd_run
from robust_vit.attacks.autoattack.fab import fab_run
from robust_vit.attacks.autoattack.factories import apgd, fab, square
from robust_vit.attacks.autoattack.square.search import square_run
from robust_vit.attacks.blackbox.boundary import boundary
from robust_vit.attacks.blackbox.hop_skip_jump import hop_skip_jump
from robust_vit.attacks.blackbox.nes import nes
from robust_vit.attacks.fgsm import fgsm
from robust_vit.attacks.minimal.carlini import cw, ead
from robust_vit.attacks.minimal.ddn import ddn
from robust_vit.attacks.minimal.deepfool import deepfool
from robust_vit.attacks.minimal.fmn import fmn
from robust_vit.attacks.minimal.pdpgd import pdpgd
from robust_vit.attacks.patch_fool import patch_fool
from robust_vit.attacks.patches.attack import patch
from robust_vit.attacks.pgd import pgd
from robust_vit.attacks.straight_through import straight_through
from robust_vit.attacks.transferable.attack import transfer
from robust_vit.attacks.universal import universal
from robust_vit.errors import lookup, nearest
from robust_vit.threat import Threat
from robust_vit.typing import Attack

ATTACKS: dict[str, Callable[..., Attack]] = {
    "apgd": apgd,
    "boundary": boundary,
    "cw": cw,
    "ddn": ddn,
    "deepfool": deepfool,
    "ead": ead,
    "fab": fab,
    "fgsm": fgsm,
    "fmn": fmn,
    "hop_skip_jump": hop_skip_jump,
    "nes": nes,
    "patch": patch,
    "pdpgd": pdpgd,
    "pgd": pgd,
    "square": square,
    "transfer": transfer,
}


def names() -> tuple[str, ...]:
    """The names `build` knows, sorted."""
    return tuple(sorted(ATTACKS))


def known_as(name: str, field: str = "attack") -> tuple[str, dict[str, Any]]:
    """What a name or an alias (`bim`, `MI-FGSM`, `apgd-t`; `aliases`) stands for: a name of `names()`, and the alias's
    defaults.

    Raises:
      ValueError: if the name is unknown; `field` is what the line calls it, and the nearest is suggested.
    """
    key = str(name).lower().replace("-", "_").replace(" ", "_")
    if key in aliases.ELSEWHERE:
        raise ValueError(f"{field} = {name!r}: is an ensemble, {aliases.ELSEWHERE[key]}")
    if key in aliases.ALIASES:
        return aliases.ALIASES[key]
    if key not in ATTACKS:
        lookup(field, name, ATTACKS)
    return key, {}


def factory(name: str) -> Callable[..., Attack]:
    """The factory of a name or of an alias, with the alias's defaults.

    Raises:
      ValueError: if the name is unknown; the nearest is suggested.
    """
    known, defaults = known_as(name)
    return functools.partial(ATTACKS[known], **defaults) if defaults else ATTACKS[known]


def build(name: str, *, threat: Any = None, **keywords: Any) -> Attack:
    """Makes an attack by name: `build("pgd", norm="l2", epsilon=0.5)` is `pgd(norm="l2", epsilon=0.5)`.

    Args:
      name: one of `names()`, or an alias.
      threat: a `robust_vit.Threat` or its text, "linf-8/255", in place of `norm` and `epsilon`.
      **keywords: of the attack's factory.

    Raises:
      ValueError: if the name is unknown (the nearest is suggested) or a keyword is bad, missing or misspelt.
    """
    make, known = factory(name), options(name)
    if threat is not None:
        given = sorted({"norm", "epsilon"} & keywords.keys())
        if given:
            raise ValueError(f"threat = {str(threat)!r}: must be alone, {' and '.join(given)} given too")
        keywords |= Threat.parse(threat).keywords
    for keyword in keywords:
        lookup(f"keyword of attack {name}", keyword, known)
    missing = [key for key, default in known.items() if default is inspect.Parameter.empty and key not in keywords]
    if missing:
        raise ValueError(f"attack {name}: {', '.join(missing)} must be given")
    return make(**keywords)


def __getattr__(name: str) -> Callable[..., Attack]:
    """`attacks.bim(epsilon=8 / 255)`: an alias as a factory of its own."""
    if name not in aliases.ALIASES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{nearest(name, globals())}")
    return factory(name)


def options(name: str) -> dict[str, Any]:
    """Returns {keyword: default} of what `build(name, ...)` takes; a required keyword has `inspect.Parameter.empty`."""
    return {key: one.default for key, one in inspect.signature(factory(name)).parameters.items()}


__all__ = [
    "ATTACKS",
    "apgd",
    "apgd_run",
    "blackbox",
    "boundary",
    "build",
    "cw",
    "ddn",
    "deepfool",
    "ead",
    "expectation",
    "factory",
    "fab",
    "fab_run",
    "fgsm",
    "fmn",
    "hop_skip_jump",
    "known_as",
    "losses",
    "minimal",
    "names",
    "nes",
    "norms",
    "options",
    "patch",
    "patch_fool",
    "patches",
    "pdpgd",
    "pgd",
    "square",
    "square_run",
    "straight_through",
    "transfer",
    "universal",
]
