"""XCiT-M12/4 on CIFAR-100 at 8/255, fine-tuned, light recipe: 69.21 clean, 34.21 AutoAttack published.

    robust-vit train --config=cifar100/light_recipe/xcit_m12 --workdir=runs/xcit_m12

TRADES 6, 10 steps; begins with xcit_m12_eps8 of ImageNet (config.initial.weights). The checkpoint is of another run
than S12's, whose learning rate may have differed.

Cost: 22 epochs of 27 forward passes an image, 0.05 M images, 2.78 GMACs a pass: 1.7e17 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.cifar("cifar100", "xcit_medium_12_p4_32", initial="runs/xcit_m12_eps8")
