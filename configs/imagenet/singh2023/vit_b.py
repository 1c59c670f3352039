"""ViT-B/16 at 4/255, Singh 2023: 73.3 clean, 50.0 AutoAttack published.

    robust-vit train --config=imagenet/singh2023/vit_b --workdir=runs/vit_b

APGD-2 from the image, heavy augmentation, from clean weights (config.initial.weights).

Cost: 50 epochs of 7 forward passes an image, 1.28 M images, 17.6 GMACs a pass: 1.6e19 operations.
Not run in this project.

Reference: Singh, Croce & Hein, Revisiting Adversarial Training for ImageNet, NeurIPS 2023, arXiv 2303.01870;
github.com/nmndeep/revisiting-at.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.revisited("vit_base_patch16_224", epochs=50)
