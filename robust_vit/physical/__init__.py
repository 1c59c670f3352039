"""From the printer to the camera, differentiably: what becomes of an image that is printed and photographed.

    see = physical.camera()                                # a chain with everyday settings
    see = physical.chain(physical.gamut(), physical.ink(0.02), physical.perspective(0.1), physical.jpeg(75))
    photographs = see(keys, images)                        # keys [B], images [B,H,W,C] in [0,1]

Every stage is (keys [B], images) -> images, draws from each example's own key, and passes gradients; the chain serves
`attacks.expectation` and every `transform=` of `attacks.patches`. `sheet` lays patches out for a printer, at a stated
size.
"""

from robust_vit.physical.chain import Stage, camera, chain
from robust_vit.physical.geometry import lens, perspective, resampled
from robust_vit.physical.jpeg import jpeg
from robust_vit.physical.light import blur, gamut, ink, lighting, sensor
from robust_vit.physical.sheet import sheet

__all__ = [
    "Stage",
    "blur",
    "camera",
    "chain",
    "gamut",
    "ink",
    "jpeg",
    "lens",
    "lighting",
    "perspective",
    "resampled",
    "sensor",
    "sheet",
]
