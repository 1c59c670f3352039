"""ViT-B with a convolutional stem at 4/255, Singh 2023: 76.3 clean, 54.7 AutoAttack published.

    robust-vit train --config=imagenet/singh2023/vit_b_cvst --workdir=runs/vit_b_cvst

APGD-2 from the image, heavy augmentation, from clean weights (config.initial.weights).

The source's README has said 250 and 300 epochs.

Cost: 250 epochs of 7 forward passes an image, 1.28 M images, 17.9 GMACs a pass: 8.0e19 operations.
Not run in this project.

Reference: Singh, Croce & Hein, Revisiting Adversarial Training for ImageNet, NeurIPS 2023, arXiv 2303.01870;
github.com/nmndeep/revisiting-at.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.revisited("vit_base_cvst", epochs=250)
