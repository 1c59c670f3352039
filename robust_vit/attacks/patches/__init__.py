"""Patches and stickers: changes of a few pixels, as large as one likes, that keep working when they are moved.

    attack = attacks.patch(epsilon=1.0, size=5)                      # an own patch for every image
    found = patches.universal_patch(logits_fn, images, labels, size=5, target=3)       # one for all of them
    shown = patches.placed(keys, found, images)                      # somewhere, turned, scaled, lit
    found = patches.sticker(logits_fn, photos, target=3, mask=mask)  # where an object can be stuck on (RP2)

`physical.sheet` prints what was found.
"""

from robust_vit.attacks.patches.losses import PRINTABLE, non_printability, objectness, total_variation
from robust_vit.attacks.patches.masks import circle, rectangle
from robust_vit.attacks.patches.placing import Patch, Placement, placed
from robust_vit.attacks.patches.sticker import sticker
from robust_vit.attacks.patches.universal import universal_patch

__all__ = [
    "PRINTABLE",
    "Patch",
    "Placement",
    "circle",
    "non_printability",
    "objectness",
    "placed",
    "rectangle",
    "sticker",
    "total_variation",
    "universal_patch",
]
