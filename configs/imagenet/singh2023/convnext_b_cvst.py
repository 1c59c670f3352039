"""ConvNeXt-B with a convolutional stem at 4/255, Singh 2023: 75.9 clean, 56.1 AutoAttack published.

    robust-vit train --config=imagenet/singh2023/convnext_b_cvst --workdir=runs/convnext_b_cvst

APGD-2 from the image, heavy augmentation, from clean weights (config.initial.weights).

At 256 pixels, without further training: 76.9 clean, 57.3 AutoAttack.

Cost: 300 epochs of 7 forward passes an image, 1.28 M images, 15.6 GMACs a pass: 8.4e19 operations.
Not run in this project.

Reference: Singh, Croce & Hein, Revisiting Adversarial Training for ImageNet, NeurIPS 2023, arXiv 2303.01870;
github.com/nmndeep/revisiting-at.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.revisited("convnext_base_cvst")
