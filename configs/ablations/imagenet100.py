"""The Light Recipe's ablations: XCiT-N12 on 100 classes of ImageNet at 4/255; six sweeps.

    robust-vit sweep --config=ablations/imagenet100 --sweep=weight_decay --data=folder:PATH --workdir=runs/wd --print

augmentation (16 combinations), warmup, weight_decay, attack_steps, scale (N12 to L12), architectures. The published
figures of these ablations are not at hand. On a laptop: ablations/digits.

Cost of a run: 110 epochs of 5 forward passes an image, 0.128 M images, 0.55 GMACs a pass: 7.7e16 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; the grids are of github.com/dedeswim/vits-robustness-torch, sweeps/.
"""

from robust_vit import recipes
from robust_vit.recipes import ablations

CROPS = ("random_resized_crop(224)", "flip")
JITTER = ("color_jitter(0.4, 0.4, 0.4)",)
SIZES = ("nano", "tiny", "small", "medium", "large")


def get_config():
    return recipes.light_recipe.imagenet100()


def sweeps():
    rand_augment = recipes.parts.RAND_AUGMENT
    architectures = {name: f"imagenet100/light_recipe/{name}" for name in ("xcit_s12", "deit_s", "cait_s12")}
    return {
        "augmentation": ablations.augmentations(CROPS, rand_augment, otherwise=JITTER),
        "warmup": ablations.heavy(ablations.warmup(), CROPS, rand_augment),
        "weight_decay": ablations.weight_decay(),
        "attack_steps": ablations.heavy(ablations.attack_steps(), CROPS, rand_augment),
        "scale": {f"{size}_12": {"model.name": f"xcit_{size}_12_p16_224"} for size in SIZES},
        "architectures": ablations.configs(architectures),
    }
