"""XCiT-S12/16 on Caltech-101 without an attack, fine-tuned, light recipe: no figure at hand.

    robust-vit train --config=caltech101/light_recipe/xcit_s12_clean --workdir=runs/xcit_s12_clean

Canonical augmentation; begins with xcit_s12_clean of ImageNet (config.initial.weights).

Cost: 30 epochs of 3 forward passes an image, 0.00306 M images, 4.8 GMACs a pass: 2.6e15 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.photographs_clean("caltech101", initial="runs/xcit_s12_clean")
