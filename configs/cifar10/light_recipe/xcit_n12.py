"""XCiT-N12/4 on CIFAR-10 at 8/255 by PGD-1, fine-tuned, light recipe: no figure at hand.

    robust-vit train --config=cifar10/light_recipe/xcit_n12 --workdir=runs/xcit_n12

Canonical augmentation, SGD; begins with xcit_n12 of ImageNet-100 (config.initial.weights).

Cost: 110 epochs of 5 forward passes an image, 0.05 M images, 0.18 GMACs a pass: 9.9e15 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.cifar_nano(initial="runs/xcit_n12")
