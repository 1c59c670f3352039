"""XCiT-N12/16 at 4/255 on 100 classes, light recipe: no figure at hand.

    robust-vit train --config=imagenet100/light_recipe/xcit_n12 --workdir=runs/xcit_n12

PGD-1, 1024 images a step, epsilon over 20 epochs, weight decay 0.05: what the ablations vary.

The data are a folder: --data=folder:PATH.

Cost: 110 epochs of 5 forward passes an image, 0.128 M images, 0.55 GMACs a pass: 7.7e16 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.imagenet100()
