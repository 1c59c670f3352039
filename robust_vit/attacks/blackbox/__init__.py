"""Black-box attacks: they ask a classifier for its answers and differentiate nothing.

    attack = attacks.nes(epsilon=8 / 255, steps=50)           # asks for logits
    attack = attacks.hop_skip_jump(norm="l2", epsilon=0.5)    # asks for classes only

    victim = blackbox.Victim(api, num_classes=10, limit=20_000)   # any Python function; counts what it is asked
    adversarial = attack(0, victim.logits_fn, images, labels)

    hunt = blackbox.hunt("nes", norm="linf", steps=50)        # the same walk, which tells when it was over
    found = hunt(keys, logits_fn, images, labels, epsilon)    # found.queries [B]: inf where it never succeeded

`evaluation.query_curve` draws accuracy against the number of queries; `substitute` trains a student on a victim's
answers, to attack with gradients.
"""

from collections.abc import Callable

from robust_vit.attacks.blackbox import boundary as _boundary
from robust_vit.attacks.blackbox import hop_skip_jump as _hop_skip_jump
from robust_vit.attacks.blackbox import nes as _nes
from robust_vit.attacks.blackbox import random_search as _random_search
from robust_vit.attacks.blackbox.hunting import Hunt, Reached
from robust_vit.attacks.blackbox.substitute import Substitute, substitute
from robust_vit.attacks.blackbox.victim import Victim
from robust_vit.errors import lookup

HUNTS: dict[str, Callable[..., Hunt]] = {
    "boundary": _boundary.hunt,
    "hop_skip_jump": _hop_skip_jump.hunt,
    "nes": _nes.hunt,
    "square": _random_search.hunt,
}


def hunt(name: str, **keywords) -> Hunt:
    """Makes the hunt `name`; keywords are those of its attack, without `epsilon`.

    Raises:
      ValueError: for an unknown name or a bad keyword.
    """
    return lookup("hunt", name, HUNTS)(**keywords)


__all__ = ["HUNTS", "Hunt", "Reached", "Substitute", "Victim", "hunt", "substitute"]
