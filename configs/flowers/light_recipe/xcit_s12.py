"""XCiT-S12/16 on Oxford Flowers at 8/255, fine-tuned, light recipe: 82.86 clean, 47.91 AutoAttack published.

    robust-vit train --config=flowers/light_recipe/xcit_s12 --workdir=runs/xcit_s12

PGD-1; begins with xcit_s12_eps8 of ImageNet (config.initial.weights).

Cost: 30 epochs of 5 forward passes an image, 0.00102 M images, 4.8 GMACs a pass: 1.5e15 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.photographs("oxford_flowers102", initial="runs/xcit_s12_eps8")
