"""XCiT-S12/4 on CIFAR-100 at 8/255, fine-tuned, light recipe: 67.34 clean, 32.19 AutoAttack published.

    robust-vit train --config=cifar100/light_recipe/xcit_s12 --workdir=runs/xcit_s12

TRADES 6, 10 steps; begins with xcit_s12_eps8 of ImageNet (config.initial.weights).

Cost: 22 epochs of 27 forward passes an image, 0.05 M images, 1.56 GMACs a pass: 9.3e16 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.cifar("cifar100", "xcit_small_12_p4_32", initial="runs/xcit_s12_eps8")
