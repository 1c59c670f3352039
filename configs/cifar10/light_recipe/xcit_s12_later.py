"""XCiT-S12/4 on CIFAR-10 at 8/255, fine-tuned as that repository says today: no figure at hand.

    robust-vit train --config=cifar10/light_recipe/xcit_s12_later --workdir=runs/xcit_s12_later

Edited after the checkpoints were published: padded crops, jitter, rotation; 1024 images a step.

Cost: 22 epochs of 27 forward passes an image, 0.05 M images, 1.56 GMACs a pass: 9.3e16 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.cifar_later("cifar10", "xcit_small_12_p4_32", initial="runs/xcit_s12_eps8")
