"""ConvNeXt-T with a convolutional stem at 4/255, Singh 2023: 72.7 clean, 49.5 AutoAttack published.

    robust-vit train --config=imagenet/singh2023/convnext_t_cvst --workdir=runs/convnext_t_cvst

APGD-2 from the image, heavy augmentation, from clean weights (config.initial.weights).

Cost: 300 epochs of 7 forward passes an image, 1.28 M images, 4.6 GMACs a pass: 2.5e19 operations.
Not run in this project.

Reference: Singh, Croce & Hein, Revisiting Adversarial Training for ImageNet, NeurIPS 2023, arXiv 2303.01870;
github.com/nmndeep/revisiting-at.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.revisited("convnext_tiny_cvst")
