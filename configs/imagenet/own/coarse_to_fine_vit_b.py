"""ViT-B/16 at 4/255 in stages of 112 and 224 pixels, as AdvXL: ours, no published figure.

    robust-vit train --config=imagenet/own/coarse_to_fine_vit_b --workdir=runs/coarse_to_fine_vit_b

88 epochs at 112 pixels by PGD-1, 22 at 224 by PGD-3. AdvXL's own runs, on a billion captioned images, are out of
reach here: its ViT-H/14 has 83.9 clean, 69.8 AutoAttack.

Cost: 88 epochs of 5 forward passes an image, 4.3 GMACs a pass, and 22 of 9 passes, 17.6 GMACs, 1.28 M images: 1.4e19
operations.
Not run in this project.

Reference: Wang et al., Revisiting Adversarial Training at Scale, CVPR 2024, arXiv 2401.04727; the constants are of
Debenedetti et al., SaTML 2023, arXiv 2209.07399.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.coarse_to_fine()
