"""Methods side by side on the handwritten digits: a ViT of 26,000 weights, all trained by equally many forward passes.

    robust-vit train --config=ablations/small_digits:trades --workdir=runs/small/trades
    robust-vit train --config=ablations/small_digits:hat --config.objective.teacher=runs/plain --workdir=runs/small/hat
    robust-vit sweep --config=ablations/small_digits --sweep=warmup --workdir=runs/small/warmup

The argument names one of METHODS, or a family of models. A method says what one image costs it in an epoch, from which
follows how many epochs the budget buys. Learning rate, weight decay, batches, model and the shape of both schedules are
the same for all; no method was tuned here, and what is its own is its paper's.

Cost: 340 forward passes on an image, those of PGD-7 over 20 epochs. Figures: docs/recipes.md.
"""

from robust_vit import config as config_lib
from robust_vit import recipes
from robust_vit.errors import lookup
from robust_vit.recipes import ablations

BUDGET = 340.0  # forward passes on one image; a backward pass to the image is one more, to image and weights two
HALF = BUDGET / 2  # of what begins from another run, or is begun from
LIGHT = ("random_affine(degrees=10, translate=0.4, scale=(0.9, 1.1))",)  # of the best recipe of configs/digits.py
TWO_STEPS = {"attack.steps": 2, "attack.step_size": 0.075}
FGSM = {"attack.name": "fgsm"}
AWP = {"awp.gamma": 0.005}  # as published
ALARM = {"alarm.examples": 180, "alarm.gap": 0.1, "alarm.action": "rollback"}  # on all of validation
# 80 % of the epochs at half the resolution by one step, the rest at full size by three
STAGED = {"stages.image_sizes": (4, 8), "stages.steps": (1, 3), "stages.step_sizes": (0.1, 0.05)}

# method -> (recipe of configs/digits.py, forward passes on an image in an epoch, fields)
METHODS: dict[str, tuple[str, float, dict]] = {
    "standard": ("standard", 3, {}),
    "gradient_norm": ("gradient_norm", 6, {}),
    "adversarial": ("adversarial", 17, {}),
    "adversarial_2": ("adversarial", 7, TWO_STEPS),
    "adversarial_apgd": ("adversarial", 8, {"attack.name": "apgd", "attack.steps": 2, "attack.random_start": False}),
    "adversarial_adam": ("adversarial", 17, {"attack.options.update": "adam"}),
    "moved": ("adversarial", 7, TWO_STEPS | {"data.train_transforms": LIGHT, "optimizer.ema_decay": 0.99}),
    "mixed": ("mixed", 20, {}),
    "fgsm": ("adversarial", 5, FGSM | {"attack.random_start": False}),
    "fgsm_alarm": ("adversarial", 5, FGSM | {"attack.random_start": False} | ALARM),
    "fgsm_random": ("adversarial", 5, FGSM),
    "fgsm_noise": ("adversarial", 5, FGSM | {"attack.options.noise": 2.0}),
    "fgsm_aligned": ("adversarial", 13, FGSM | {"objective.options.grad_align": 0.2}),
    "trades": ("trades", 21, {}),
    "trades_normal": ("trades", 21, {"attack.options.start": "normal"}),
    "mart": ("mart", 20, {}),
    "hat": ("hat", 25, {}),
    "score_adversarial": ("score_adversarial", 17, {}),
    "score_trades": ("score_trades", 21, {}),
    "ikl": ("ikl", 21, {}),
    "gkl": ("gkl", 21, {"objective.options.gamma": 0.2, "objective.options.temperature": 1.0}),  # at gamma 1 it is ikl
    "awp": ("adversarial", 20, AWP),
    "awp_trades": ("trades", 27, AWP),
    "dropping": ("adversarial", 17, {"attack.ard_epochs": 5.0, "attack.prm_epochs": 5.0}),
    "deit_hard": ("deit_hard", 4, {}),
    "deit_soft": ("deit_soft", 4, {}),
    "rslad": ("rslad", 21, {}),
    "ard": ("ard", 21, {}),
    "ltd": ("ltd", 22, {}),
    "staged": ("adversarial", 2.8, STAGED),
}
# the same of those that have half the budget: what is begun from, and what begins from it
HALVES: dict[str, tuple[str, float, dict]] = {
    "natural": ("standard", 3, {}),
    "hardened": ("adversarial", 17, {}),
    "fare": ("fare", 18, {}),
    "tecoa": ("tecoa", 17, {}),
    "sim_clip": ("sim_clip", 21, {}),
    "painted": ("mimir", 4, {"attack.steps": 1, "attack.step_size": 0.125}),
    "painted_hardened": ("adversarial", 17, {}),
}
AUTOENCODER = dict(name="masked_autoencoder", patch_size=4, width=32, depth=2, heads=2, pooling="mean")
AUTOENCODER |= dict(positions="sinusoidal", initializer="lecun", decoder_width=32, decoder_depth=1, decoder_heads=2)

# family -> a model of about as many weights as the ViT, 26,000
FAMILIES: dict[str, dict] = {
    "vit": {},
    "deit": dict(name="deit", patch_size=4, width=32, depth=2, heads=2, initializer="lecun"),
    "cait": dict(name="cait", patch_size=4, width=32, depth=1, heads=2, class_depth=1, layer_scale=1.0),
    "xcit": dict(name="xcit", patch_size=2, stem_depth=1, width=22, depth=2, heads=2),
    "swin": dict(name="swin", patch_size=1, width=18, depths=(1, 1), heads=(2, 4), window_size=4),
    "resnet": dict(name="resnet50_32", depths=(1, 1, 1), widths=(8, 16, 24), stem_width=12),
}


def get_config(name: str = "adversarial"):
    lookup("config argument", name, METHODS | HALVES | FAMILIES)
    recipe, passes, fields = (METHODS | HALVES).get(name, METHODS["adversarial"])
    config = _shared(config_lib.load_file(f"digits:{recipe}"))
    _lasting(config, round((HALF if name in HALVES else BUDGET) / passes))
    if FAMILIES.get(name):
        _built(config, **FAMILIES[name])
    if name == "painted":
        _built(config, **AUTOENCODER)
        config.evaluation.suite = ""  # its head was never trained
    if name == "staged":
        config.stages.epochs = (0.8 * config.training.epochs, 0.2 * config.training.epochs)
    for field, value in fields.items():
        section, _, own = field.rpartition(".")
        config_lib.get(config, section)[own] = value
    return config


def _shared(config):
    """What all have in common, but for their length."""
    config.model.patch_size, config.model.width, config.model.depth, config.model.heads = 4, 32, 2, 2
    config.alarm.examples = 0
    config.evaluation.suite = "clean,autoattack"
    return config


def _lasting(config, epochs: float):
    """So many epochs: epsilon rises over 30 % of them, the learning rate over 5 %, and eight times it is validated."""
    config.training.epochs = float(epochs)
    config.attack.warmup_epochs = 0.3 * epochs
    config.optimizer.warmup_epochs = 0.05 * epochs
    config.training.validate_every_epochs = config.training.save_every_epochs = epochs / 8


def _built(config, name: str, **fields):
    """Another model for the same pixels."""
    shared = {field: config.model[field] for field in ("channels", "mean", "std")}
    config.model = config_lib.base().model
    recipes.parts.model(config, name, **shared, **fields)


def sweeps():
    return {
        "augmentation": ablations.augmentations((), recipes.parts.RAND_AUGMENT),
        "warmup": ablations.one_field("attack.warmup_epochs", [epochs / 2 for epochs in ablations.WARMUP_EPOCHS]),
        "weight_decay": ablations.weight_decay(),
        "attack_steps": {
            f"steps={steps}": {"attack.steps": steps, "attack.step_size": round(0.15 / steps, 4)}
            for steps in ablations.ATTACK_STEPS
        },
        "architectures": ablations.configs({family: f"ablations/small_digits:{family}" for family in FAMILIES}),
    }
