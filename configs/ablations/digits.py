"""The Light Recipe's ablations on the handwritten digits, a run of minutes on a laptop; seven sweeps.

    robust-vit sweep --config=ablations/digits --sweep=augmentation --seeds=0,1,2 --workdir=runs/augmentation

augmentation (16 combinations), warmup, weight_decay, attack_steps, scale (ViTs of 16 to 128 channels), architectures
(six families of about 200,000 weights), and training in stages (Wang et al., Revisiting Adversarial Training at Scale,
arXiv 2401.04727). The argument names the family: ablations/digits:xcit.

Cost of a run: configs/digits.py.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399.
"""

from robust_vit import config as config_lib
from robust_vit import recipes
from robust_vit.errors import lookup
from robust_vit.recipes import ablations

# family -> a model of about as many weights as the ViT of configs/digits.py, 201,000
FAMILIES = {
    "vit": {},
    "deit": dict(name="deit", patch_size=2, width=64, depth=4, heads=4, initializer="lecun"),
    "cait": dict(name="cait", patch_size=2, width=64, depth=2, heads=4, class_depth=2, layer_scale=1.0),
    "xcit": dict(name="xcit", patch_size=2, stem_depth=1, width=64, depth=2, heads=4),
    "swin": dict(name="swin", patch_size=1, width=40, depths=(2, 2), heads=(2, 4), window_size=4),
    "resnet": dict(name="resnet50_32", depths=(1, 1, 1), widths=(24, 48, 72), stem_width=32),
}
# AdvXL's idea: most of training at half the resolution with a weak attack, the end at full size with a stronger one
STAGES = {"stages.epochs": (32.0, 8.0), "stages.image_sizes": (4, 8), "stages.steps": (1, 3)}


def get_config(family: str = "vit"):
    config = config_lib.load_file("digits:adversarial")
    recipes.parts.pgd(config, epsilon=0.1, steps=7)
    model = dict(lookup("config argument", family, FAMILIES))
    if model:
        shared = {field: config.model[field] for field in ("channels", "mean", "std")}
        config.model = config_lib.base().model
        recipes.parts.model(config, model.pop("name"), **shared, **model)
    return config


def sweeps():
    rand_augment = recipes.parts.RAND_AUGMENT
    return {
        "augmentation": ablations.augmentations((), rand_augment),
        "warmup": ablations.heavy(ablations.warmup(), (), rand_augment),
        "weight_decay": ablations.weight_decay(),
        "attack_steps": ablations.heavy(ablations.attack_steps(), (), rand_augment),
        "scale": {f"width={width}": {"model.width": width} for width in (16, 32, 64, 128)},
        "stages": {"one": {}, "coarse_to_fine": STAGES},
        "architectures": ablations.configs({family: f"ablations/digits:{family}" for family in FAMILIES}),
    }
