"""Pictures that explain runs: curves, adversarial examples, attention, perturbations and what they mean.

Functions return arrays; `plot_*` return a Matplotlib figure, which a notebook shows as it is. `robust-vit explain`
draws them of runs, with the numbers beside every picture.
"""

from robust_vit import lazy

_OBJECTS = {
    "Film": "filmstrip",
    "film": "filmstrip",
    "plot_filmstrip": "filmstrip",
    "animate": "filmstrip",
    "Perturbed": "perturbations",
    "perturbed": "perturbations",
    "plot_perturbations": "perturbations",
    "amplitude": "spectra",
    "energy_below": "spectra",
    "plot_spectra": "spectra",
    "Trajectory": "trajectory",
    **dict.fromkeys(
        ("attention_maps", "attention_rollout", "attention_shift", "class_attention", "put_together", "rollout"),
        "attention",
    ),
    **dict.fromkeys(("plot_attention", "plot_kept", "plot_rollout", "plot_shift", "shift_of"), "attention_plots"),
    **dict.fromkeys(
        ("position_embeddings", "plot_shuffled", "plot_similarity", "shuffle_patches", "shuffled_accuracy"),
        "positions",
    ),
    **dict.fromkeys(("similarity", "without_positions"), "positions"),
    **dict.fromkeys(
        ("accumulated_gradients", "alignment", "alone", "fitted_judge", "magnitude", "synthesize"), "semantics"
    ),
    **dict.fromkeys(("plot_gradients", "plot_scores", "plot_synthesis"), "semantics_plots"),
    "History": "history",
    **dict.fromkeys(("Walk", "walk"), "walks"),
    **dict.fromkeys(("by_class", "by_step", "calibration", "confusion", "loss_by_step", "surface"), "curves"),
    **dict.fromkeys(
        (
            "plot_calibration",
            "plot_classes",
            "plot_confusion",
            "plot_epsilon",
            "plot_loss",
            "plot_steps",
            "plot_surface",
        ),
        "curves_plots",
    ),
}
__getattr__, __dir__ = lazy.attach(__name__, modules=lazy.submodules(__path__), objects=_OBJECTS)
