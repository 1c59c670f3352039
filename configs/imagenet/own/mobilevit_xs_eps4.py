"""MobileViT-XS at 4/255 by the light recipe, 256 pixels: ours, no published figure.

    robust-vit train --config=imagenet/own/mobilevit_xs_eps4 --workdir=runs/mobilevit_xs_eps4

No robust MobileViT is published. Weight decay 0.5 is XCiT's and should be swept for a model this small.

Cost: 110 epochs of 5 forward passes an image, 1.28 M images, 1.03 GMACs a pass: 1.5e18 operations.
Not run in this project.

Reference: Mehta & Rastegari, MobileViT, ICLR 2022, arXiv 2110.02178; the recipe is of Debenedetti et al., SaTML 2023,
arXiv 2209.07399.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.imagenet("mobilevit_xs")
