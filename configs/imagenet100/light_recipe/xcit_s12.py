"""XCiT-S12/16 at 4/255 on 100 classes, light recipe: no figure at hand.

    robust-vit train --config=imagenet100/light_recipe/xcit_s12 --workdir=runs/xcit_s12

The ablation of architectures, beside DeiT-S and CaiT-S12.

The data are a folder: --data=folder:PATH.

Cost: 110 epochs of 5 forward passes an image, 0.128 M images, 4.8 GMACs a pass: 6.8e17 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.imagenet100("xcit_small_12_p16_224")
