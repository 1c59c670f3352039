"""XCiT-S12/4 on CIFAR-10 without an attack, fine-tuned, light recipe: no figure at hand.

    robust-vit train --config=cifar10/light_recipe/xcit_s12_clean --workdir=runs/xcit_s12_clean

Begins with xcit_s12_clean of ImageNet (config.initial.weights).

Cost: 40 epochs of 3 forward passes an image, 0.05 M images, 1.56 GMACs a pass: 1.9e16 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.cifar_clean(initial="runs/xcit_s12_clean")
