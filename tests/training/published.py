"""What published runs are trained with, as their sources say it: the configurations are held to this table.

Light Recipe: the files in `configs/` of dedeswim/vits-robustness-torch, commit 2f5a214, and dcb6501 for fine-tuning on
CIFAR as the published checkpoints were made. Epochs are scheduled ones and those of the cooldown together; batches are
eight times those of a device. Other runs: see each group.
"""

CROP224 = "random_resized_crop(224)"
RAND = "rand_augment('rand-m9-mstd0.5-inc1')"
JITTER = "color_jitter(0.4, 0.4, 0.4)"
NO_AUGMENTATION = {"augmentation.mixup": 0.0, "augmentation.cutmix": 0.0, "augmentation.erase": 0.0}
CANONICAL = {"augmentation.mixup": 0.8, "augmentation.cutmix": 1.0, "augmentation.erase": 0.25}
CIFAR10 = {"model.mean": (0.4914, 0.4822, 0.4465), "model.std": (0.2471, 0.2435, 0.2616)}
CIFAR100 = {"model.mean": (0.5071, 0.4867, 0.4408), "model.std": (0.2675, 0.2565, 0.2761)}
HALF = {"model.mean": (0.5, 0.5, 0.5), "model.std": (0.5, 0.5, 0.5)}
PLAIN = {"model.mean": (), "model.std": ()}

ADAMW = {
    "optimizer.name": "adamw",
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_learning_rate": 1e-6,
    "optimizer.warmup_prefix": False,
    "optimizer.per_epoch": True,
    "optimizer.clip_norm": 0.0,
    "optimizer.ema_decay": 0.0,
}
LIGHT = {
    **ADAMW,
    **PLAIN,
    **NO_AUGMENTATION,
    "data.options.dataset": "imagenet2012:5.1.0",
    "data.batch_size": 512,
    "data.train_transforms": (CROP224, "flip", JITTER),
    "data.evaluation_transforms": ("resize_centre_crop(224, crop_fraction=1.0)",),
    "model.drop_path": 0.05,
    "attack.name": "pgd",
    "attack.norm": "linf",
    "attack.random_start": True,
    "attack.epsilon": 4 / 255,
    "attack.steps": 1,
    "attack.step_size": 6 / 255,
    "attack.schedule": "linear",
    "attack.warmup_epochs": 10.0,
    "attack.per_epoch": True,
    "attack.batch_norm": "train",
    "objective.name": "adversarial",
    "objective.label_smoothing": 0.1,
    "optimizer.learning_rate": 5e-4,
    "optimizer.final_learning_rate": 1e-5,
    "optimizer.warmup_epochs": 10.0,
    "optimizer.cooldown_epochs": 10.0,
    "optimizer.weight_decay": 0.5,
    "training.epochs": 110.0,
}
TWO_STEPS = {"attack.steps": 2, "attack.step_size": 3 / 255}
EPS8 = {"attack.epsilon": 8 / 255, "attack.steps": 2, "attack.step_size": 6 / 255}
RESNET = {
    **{field: value for field, value in LIGHT.items() if not field.startswith("optimizer.")},
    **HALF,
    "model.name": "resnet50_gelu",
    "model.drop_path": 0.0,
    "data.batch_size": 8192,
    "data.train_transforms": (CROP224, "flip"),
    "data.evaluation_transforms": ("resize_centre_crop(224, crop_fraction=0.95)",),
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.9,
    "optimizer.learning_rate": 3.2,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule": "step",
    "optimizer.decay_every_epochs": 30.0,
    "optimizer.decay_factor": 0.1,
    "optimizer.per_epoch": True,
    "optimizer.warmup_epochs": 0.0,
    "training.epochs": 100.0,
}
XCIT = {"s": "xcit_small_12", "m": "xcit_medium_12", "l": "xcit_large_12"}
OTHERS = {
    "convnext_t": ("convnext_tiny", 0.875),
    "deit_s": ("deit_small_patch16_224", 0.9),
    "cait_s12": ("cait_s12_224", 1.0),
}


def evaluated(size, fraction):
    return {"data.evaluation_transforms": (f"resize_centre_crop({size}, crop_fraction={fraction})",)}


def imagenet():
    """XCiT, DeiT, CaiT, ConvNeXt and ResNet at both radii, and the clean XCiT-S12."""
    runs = {}
    for size, name in XCIT.items():
        model = {"model.name": f"{name}_p16_224"}
        runs[f"xcit_{size}12_eps4"] = LIGHT | model | (TWO_STEPS if size == "l" else {})
        runs[f"xcit_{size}12_eps8"] = LIGHT | model | EPS8
    for short, (name, fraction) in OTHERS.items():
        own = {"model.name": name} | evaluated(224, fraction)
        runs |= {f"{short}_eps4": LIGHT | own, f"{short}_eps8": LIGHT | own | EPS8}
    runs |= {"resnet50_gelu_eps4": RESNET, "resnet50_gelu_eps8": RESNET | EPS8}
    clean = LIGHT | CANONICAL | {"model.name": "xcit_small_12_p16_224", "optimizer.warmup_epochs": 5.0}
    clean |= {"optimizer.weight_decay": 0.05, "data.train_transforms": (CROP224, "flip", RAND)}
    runs["xcit_s12_clean"] = without_attack(clean)
    return {f"imagenet/light_recipe/{name}": run for name, run in runs.items()}


def without_attack(run):
    return {k: v for k, v in run.items() if not k.startswith("attack.")} | {"objective.name": "standard"}


def mobilevit():
    """No published run: the light recipe at the resolution of MobileViT, Mehta & Rastegari 2022."""
    crops = {"data.train_transforms": ("random_resized_crop(256)", "flip", JITTER)} | evaluated(256, 0.9)
    names = ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s")
    return {f"imagenet/own/{name}_eps4": LIGHT | crops | {"model.name": name} for name in names}


def coarse_to_fine():
    """No published run: sizes and steps of AdvXL, Wang et al. 2024, with the light recipe."""
    stages = {"epochs": (88.0, 22.0), "image_sizes": (112, 224), "steps": (1, 3)}
    own = {f"stages.{field}": value for field, value in stages.items()} | {"model.name": "vit_base_patch16_224"}
    return {"imagenet/own/coarse_to_fine_vit_b": LIGHT | evaluated(224, 0.9) | own}


NANO = {
    **{field: value for field, value in LIGHT.items() if field != "data.options.dataset"},
    **evaluated(224, 1.0),
    "model.name": "xcit_nano_12_p16_224",
    "model.drop_path": 0.0,
    "data.batch_size": 1024,
    "attack.warmup_epochs": 20.0,
    "optimizer.weight_decay": 0.05,
}


def imagenet100():
    names = {"xcit_s12": "xcit_small_12_p16_224", "deit_s": "deit_small_patch16_224", "cait_s12": "cait_s12_224"}
    runs = {short: NANO | {"model.name": name} for short, name in names.items()}
    runs |= {"xcit_n12": NANO, "xcit_n12_clean": without_attack(NANO) | {"augmentation.mixup": 0.8}}
    runs["xcit_n12_heavy"] = NANO | CANONICAL | {"data.train_transforms": (CROP224, "flip", RAND)}
    return {f"imagenet100/light_recipe/{name}": run for name, run in runs.items()}


CIFAR = {
    **ADAMW,
    **NO_AUGMENTATION,
    "augmentation.erase": 0.2,
    "data.batch_size": 512,
    "data.train_transforms": ("random_resized_crop(32, scale=(0.8, 1.2), ratio=(0.95, 1.05))", "flip"),
    "data.evaluation_transforms": (),
    "model.drop_path": 0.05,
    "attack.name": "pgd",
    "attack.random_start": True,
    "attack.epsilon": 8 / 255,
    "attack.steps": 10,
    "attack.step_size": 1.2 / 255,
    "attack.schedule": "constant",
    "attack.batch_norm": "train",
    "objective.name": "trades",
    "objective.beta": 6.0,
    "objective.label_smoothing": 0.0,
    "optimizer.learning_rate": 2e-4,
    "optimizer.final_learning_rate": 5e-6,
    "optimizer.warmup_epochs": 5.0,
    "optimizer.cooldown_epochs": 2.0,
    "optimizer.weight_decay": 0.5,
    "training.epochs": 22.0,
}
PADDED = ("random_crop(32, padding=4)", "flip", "color_jitter(0.25, 0.25, 0.25)", "rotation(2)")
LATER = {
    "augmentation.erase": 0.0,
    "data.batch_size": 1024,
    "data.train_transforms": PADDED,
    "optimizer.learning_rate": 2.8284271247461901e-4,  # 2e-4 (1024 / 512)^0.5
}
CIFAR_RESNET = {
    **{field: value for field, value in CIFAR.items() if not field.startswith("optimizer.")},
    **LATER,
    "model.name": "resnet50_32",
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.9,
    "optimizer.learning_rate": 0.8,
    "optimizer.schedule": "multistep",
    "optimizer.milestones": (10.0, 15.0),
    "optimizer.decay_factor": 0.1,
    "optimizer.weight_decay": 5e-4,
}


def cifar():
    runs = {}
    for dataset, pixels in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        data = pixels | {"data.options.dataset": dataset}
        for size, name in XCIT.items():
            own = {"model.name": f"{name}_p4_32", "initial.weights": f"runs/xcit_{size}12_eps8"}
            runs[f"{dataset}/light_recipe/xcit_{size}12"] = CIFAR | data | own
        runs[f"{dataset}/light_recipe/resnet50"] = CIFAR_RESNET | data
    small = CIFAR | CIFAR10 | {"data.options.dataset": "cifar10", "model.name": "xcit_small_12_p4_32"}
    runs["cifar10/light_recipe/xcit_s12_scratch"] = small | {"training.epochs": 102.0, "initial.weights": ""}
    runs["cifar10/light_recipe/xcit_s12_later"] = small | LATER
    clean = without_attack(small) | PLAIN | {"augmentation.erase": 0.0, "objective.label_smoothing": 0.1}
    clean |= {"optimizer.learning_rate": 5e-5, "optimizer.cooldown_epochs": 10.0, "training.epochs": 40.0}
    clean |= {"data.train_transforms": ("random_resized_crop(32)", "flip", JITTER)}
    del clean["objective.beta"]
    runs["cifar10/light_recipe/xcit_s12_clean"] = clean
    runs["cifar10/light_recipe/xcit_n12"] = nano_on_cifar()
    return runs


def nano_on_cifar():
    run = {k: v for k, v in NANO.items() if not k.startswith("optimizer.b")} | CANONICAL
    return run | {
        "model.name": "xcit_nano_12_p4_32",
        "data.options.dataset": "cifar10",
        "data.train_transforms": ("random_resized_crop(32)", "flip", RAND),
        "data.evaluation_transforms": (),
        "attack.epsilon": 8 / 255,
        "attack.step_size": 12 / 255,
        "attack.schedule": "constant",
        "attack.warmup_epochs": 0.0,
        "attack.per_epoch": False,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 5e-3,
    }


def photographs():
    shared = (
        LIGHT
        | HALF
        | {
            "model.name": "xcit_small_12_p16_224",
            "attack.epsilon": 8 / 255,
            "attack.step_size": 12 / 255,
            "attack.schedule": "constant",
            "attack.warmup_epochs": 0.0,
            "attack.per_epoch": False,
            "optimizer.learning_rate": 5e-5,
            "optimizer.final_learning_rate": 5e-6,
            "optimizer.warmup_epochs": 5.0,
            "training.epochs": 30.0,
        }
    )
    runs = {}
    for folder, dataset in (("flowers", "oxford_flowers102"), ("caltech101", "caltech101")):
        own = {"data.options.dataset": dataset, "initial.weights": "runs/xcit_s12_eps8"}
        runs[f"{folder}/light_recipe/xcit_s12"] = shared | own
    clean = without_attack(shared) | CANONICAL | {"optimizer.weight_decay": 0.05}
    clean |= {"data.options.dataset": "caltech101", "data.train_transforms": (CROP224, "flip", RAND)}
    return runs | {"caltech101/light_recipe/xcit_s12_clean": clean}


def singh():
    """nmndeep/revisiting-at: run_train.sh, parserr.py, main.py; 8 GPUs are assumed."""
    shared = {
        **CANONICAL,
        **PLAIN,
        "data.options.dataset": "imagenet2012:5.1.0",
        "data.batch_size": 8 * 80,
        "data.train_transforms": (CROP224, "flip", RAND),
        "attack.name": "apgd",
        "attack.epsilon": 4 / 255,
        "attack.steps": 2,
        "attack.random_start": False,
        "attack.schedule": "constant",
        "attack.batch_norm": "running",
        "objective.name": "adversarial",
        "objective.label_smoothing": 0.1,
        "optimizer.name": "adamw",
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.95,
        "optimizer.learning_rate": 1e-3,
        "optimizer.warmup_learning_rate": 1e-7,
        "optimizer.final_learning_rate": 1e-10,
        "optimizer.warmup_epochs": 20.0,
        "optimizer.weight_decay": 0.05,
        "optimizer.ema_decay": 0.9999,
        "training.epochs": 300.0,
    }
    names = {
        "vit_s": "vit_small_patch16_224",
        "vit_s_cvst": "vit_small_cvst",
        "vit_b": "vit_base_patch16_224",
        "vit_b_cvst": "vit_base_cvst",
        "convnext_t": "convnext_tiny",
        "convnext_t_cvst": "convnext_tiny_cvst",
        "convnext_b_cvst": "convnext_base_cvst",
    }
    own = {
        "vit_b": {"training.epochs": 50.0, "optimizer.warmup_epochs": 10.0},
        "vit_b_cvst": {"training.epochs": 250.0},
    }
    return {f"imagenet/singh2023/{k}": shared | {"model.name": name} | own.get(k, {}) for k, name in names.items()}


def plain_vit():
    """demon2036/jax-adv-vit: configs/best and the defaults of its main file."""
    sizes = {
        "b": {"model.width": 768, "model.depth": 12, "model.heads": 12},
        "l": {"model.width": 1024, "model.depth": 24, "model.heads": 16},
    }
    shared = {
        **PLAIN,
        **NO_AUGMENTATION,
        "data.batch_size": 1024,
        "data.train_transforms": ("random_crop(32, padding=4, fill=128)", "flip"),
        "data.extra.ratio": 0.8,
        "data.extra.label_smoothing": 0.0,
        "model.name": "vit",
        "model.patch_size": 2,
        "model.pooling": "mean",
        "model.layer_scale": 1e-4,
        "model.drop_path": 0.0,
        "attack.name": "pgd",
        "attack.epsilon": 8 / 255,
        "attack.steps": 10,
        "attack.step_size": 2 / 255,
        "attack.schedule": "constant",
        "objective.name": "trades",
        "objective.label_smoothing": 0.4,
        "optimizer.name": "lion",
        "optimizer.b1": 0.9,
        "optimizer.lion_b2": 0.99,
        "optimizer.learning_rate": 1e-4,
        "optimizer.warmup_learning_rate": 1e-6,
        "optimizer.final_learning_rate": 1e-5,
        "optimizer.warmup_epochs": 5.0,
        "optimizer.weight_decay": 0.5,
        "optimizer.clip_norm": 1.0,
        "optimizer.ema_decay": 0.9999,
        "training.epochs": 2000.0,
    }
    betas = {"cifar10": 3.0, "cifar100": 5.0}
    return {
        f"{dataset}/plain_vit/vit_{size}2": shared | own | {"data.options.dataset": dataset, "objective.beta": beta}
        for dataset, beta in betas.items()
        for size, own in sizes.items()
    }


def generated_data():
    """deepmind-research/adversarial_robustness/jax and wzekai99/DM-Improves-AT, with another model."""
    shared = {
        **PLAIN,
        "augmentation.cutmix": 0.0,
        "data.batch_size": 1024,
        "data.train_transforms": ("random_crop(32, padding=4)", "flip"),
        "data.extra.ratio": 0.7,
        "data.extra.label_smoothing": 0.1,
        "attack.epsilon": 8 / 255,
        "attack.steps": 10,
        "attack.schedule": "constant",
        "attack.batch_norm": "batch",
        "objective.name": "trades",
        "objective.beta": 6.0,
        "objective.statistics": "adversarial",
        "objective.label_smoothing": 0.0,
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.9,
        "optimizer.learning_rate": 0.4,
        "optimizer.final_learning_rate": 0.0,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_epochs": 10.0,
        "optimizer.weight_decay": 5e-4,
        "optimizer.ema_decay": 0.995,
        "training.epochs": 400.0,
    }
    wang = {"data.batch_size": 512, "objective.beta": 5.0, "optimizer.learning_rate": 0.2, "attack.step_size": 2 / 255}
    adam = {"attack.options.update": "adam", "attack.step_size": 0.1}
    runs = {"cifar10/generated_data/gowal2021": shared | adam | {"data.options.dataset": "cifar10"}}
    for dataset in ("cifar10", "cifar100"):
        data = {"data.options.dataset": dataset}
        runs[f"{dataset}/generated_data/rebuffi2021"] = shared | data | adam | {"augmentation.cutmix": 1.0}
        runs[f"{dataset}/generated_data/wang2023"] = shared | data | wang
    return runs


def mimir():
    """xiaoyunxxy/MIMIR: script/train_imagenet.sh and script/train_cifar10.sh, on 4 GPUs."""
    shared = {
        **NO_AUGMENTATION,
        "model.pooling": "mean",
        "model.drop_path": 0.1,
        "attack.name": "pgd",
        "attack.schedule": "constant",
        "objective.name": "adversarial",
        "objective.label_smoothing": 0.1,
        "optimizer.layer_decay": 0.65,
        "optimizer.weight_decay": 0.05,
    }
    imagenet = {
        "data.options.dataset": "imagenet2012:5.1.0",
        "data.batch_size": 4 * 256,
        "attack.epsilon": 4 / 255,
        "attack.steps": 1,
        "attack.step_size": 5 / 255,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-3 * 1024 / 256,
        "optimizer.warmup_epochs": 10.0,
        "training.epochs": 100.0,
    }
    cifar = {
        "data.options.dataset": "cifar10",
        "data.batch_size": 4 * 32,
        "model.patch_size": 2,
        "attack.epsilon": 8 / 255,
        "attack.steps": 10,
        "attack.step_size": 2 / 255,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.05 * 128 / 256,
        "optimizer.warmup_epochs": 5.0,
        "training.epochs": 50.0,
    }
    sizes = {"t": "tiny", "s": "small", "b": "base"}
    name = {short: {"model.name": f"vit_{size}_patch16_224"} for short, size in sizes.items()}
    runs = {f"imagenet/mimir/vit_{size}": shared | imagenet | name[size] for size in ("s", "b")}
    runs |= mimir_pretraining(sizes)
    return runs | {f"cifar10/mimir/vit_{size}2": shared | cifar | name[size] for size in sizes}


def mimir_pretraining(sizes):
    shared = {
        **NO_AUGMENTATION,
        "attack.name": "pgd",
        "attack.random_start": True,
        "attack.epsilon": 8 / 255,
        "attack.steps": 1,
        "attack.step_size": 10 / 255,
        "objective.name": "mimir",
        "optimizer.name": "adamw",
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.95,
        "optimizer.final_learning_rate": 0.0,
        "optimizer.warmup_epochs": 40.0,
        "optimizer.weight_decay": 0.05,
        "training.epochs": 800.0,
    }
    imagenet = {
        "data.options.dataset": "imagenet2012:5.1.0",
        "data.batch_size": 4 * 512,
        "data.train_transforms": ("random_resized_crop(224, scale=(0.2, 1.0))", "flip"),
        "optimizer.learning_rate": 1.5e-4 * 2048 / 256,
    }
    cifar = {
        "data.options.dataset": "cifar10",
        "data.batch_size": 4 * 128,
        "data.train_transforms": ("random_resized_crop(32, scale=(0.2, 1.0))", "flip"),
        "model.patch_size": 2,
        "optimizer.learning_rate": 1.5e-4 * 512 / 256,
    }
    name = {short: {"model.name": f"masked_autoencoder_{size}_patch16_224"} for short, size in sizes.items()}
    runs = {f"imagenet/mimir/pretrain_vit_{size}": shared | imagenet | name[size] for size in ("s", "b")}
    return runs | {f"cifar10/mimir/pretrain_vit_{size}2": shared | cifar | name[size] for size in sizes}


RUNS = {
    **imagenet(),
    **mobilevit(),
    **coarse_to_fine(),
    **imagenet100(),
    **cifar(),
    **photographs(),
    **singh(),
    **plain_vit(),
    **generated_data(),
    **mimir(),
}
