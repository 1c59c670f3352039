"""Vision transformers trained, attacked, evaluated and explained for adversarial robustness, in JAX.

    import robust_vit as rv

    classifier = rv.load("runs/digits")  # a run folder, converted weights, or a PyTorch checkpoint
    batch = next(iter(rv.data.evaluate(rv.data.build("digits").test, batch_size=360)))
    adversarial = classifier.attack("pgd", batch["image"], batch["label"], steps=50, restarts=5, keep="success")
    for images in (batch["image"], adversarial):
        print((classifier.predict(images) == batch["label"]).mean())

* `load` returns a `Classifier`, which is called like a function and has `attack`, `evaluate`, `predict`, `attention`;
  `Classifier(function, threat="linf-8/255")` is one of any function, `from_torch(module)` and `from_numpy(function,
  classes)` make functions of what is not JAX. `Threat("linf", 8 / 255)` is a norm and a radius.
* `attacks`, `models` and `objectives` need only jax, flax and optax, and know nothing of devices, files or
  configurations. `data`, `training`, `evaluation` and `analysis` put them to work.
* `config` holds every field of an experiment; `parallel` alone knows devices, `randomness` gives each example its key,
  `pixels` makes floats of bytes, `provenance` says what made a result, `typing` and `errors` are shared by all.

Everything is imported when it is first asked for: `import robust_vit` starts no JAX. The commands are `main` (train),
`evaluate`, `convert`, `compare`, `doctor` and `models`: `python -m robust_vit.evaluate --help`.
"""

from robust_vit import guard, lazy

__version__ = "0.1.0"

guard.install()

_MODULES = (
    *("analysis", "attacks", "config", "data", "errors", "evaluation", "models", "objectives", "parallel"),
    *("pixels", "provenance", "randomness", "training", "typing"),
)
_OBJECTS = {
    "Classifier": "classifier",
    "Threat": "threat",
    "from_numpy": "foreign",
    "from_torch": "foreign",
    "load": "loading",
}

__all__ = [*_MODULES, *_OBJECTS]
__getattr__, __dir__ = lazy.attach(__name__, modules=_MODULES, objects=_OBJECTS)
