"""XCiT-S12/4 on CIFAR-10 at 8/255 from scratch, light recipe: no figure at hand.

    robust-vit train --config=cifar10/light_recipe/xcit_s12_scratch --workdir=runs/xcit_s12_scratch

TRADES 6, 10 steps, 100 epochs and 2 more.

Cost: 102 epochs of 27 forward passes an image, 0.05 M images, 1.56 GMACs a pass: 4.3e17 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.cifar("cifar10", "xcit_small_12_p4_32")
