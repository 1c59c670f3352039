"""Names that people type for attacks that stand here under another one: what each means, as keywords of that attack."""

from typing import Any

# alias -> (name in `attacks.ATTACKS`, its defaults). Written small, with underscores: `MI-FGSM` is read as `mi_fgsm`.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    # Kurakin et al. 2017, https://arxiv.org/abs/1607.02533: PGD from the clean image
    **dict.fromkeys(("bim", "ifgsm", "i_fgsm"), ("pgd", {"random_start": False})),
    # Kurakin et al. 2017, https://arxiv.org/abs/1611.01236: towards the class that each clean image is least like
    **dict.fromkeys(("ll_fgsm", "step_ll"), ("fgsm", {"targeted": "least_likely"})),
    **dict.fromkeys(("llc", "iter_ll", "iterll"), ("pgd", {"random_start": False, "targeted": "least_likely"})),
    # Athalye et al. 2018, https://arxiv.org/abs/1707.07397: of a model called with keys
    **dict.fromkeys(("eotpgd", "eot_pgd", "pgd_eot"), ("pgd", {"stochastic": True, "eot": 10})),
    # Dong et al. 2018, https://arxiv.org/abs/1710.06081: momentum of decay 1 from the clean image
    **dict.fromkeys(("mim", "mifgsm", "mi_fgsm"), ("pgd", {"random_start": False, "momentum": 1.0, "keep": "last"})),
    # The ingredients of transfer, which combine: `transferable`
    **dict.fromkeys(("ni_fgsm", "nifgsm"), ("transfer", {"nesterov": True})),
    **dict.fromkeys(("di_fgsm", "difgsm", "dim"), ("transfer", {"diversity": 0.5})),
    **dict.fromkeys(("ti_fgsm", "tifgsm", "tim"), ("transfer", {"translation": 7})),
    **dict.fromkeys(("si_ni_fgsm", "sinifgsm", "sim"), ("transfer", {"nesterov": True, "scales": 5})),
    **{name: ("transfer", {"tokens": name}) for name in ("pna", "tgr")},
    # minimal-norm attacks: `minimal`
    **dict.fromkeys(("carlini_wagner", "carliniwagner", "c&w", "cw_l2", "cwl2"), ("cw", {})),
    **dict.fromkeys(("elastic_net", "ead_l1", "eadl1"), ("ead", {})),
    "deep_fool": ("deepfool", {}),
    # black-box attacks: `blackbox`
    "spsa": ("nes", {"directions": "signs"}),
    **dict.fromkeys(("hopskipjump", "hsja", "hop_skip_jump_attack"), ("hop_skip_jump", {})),
    "boundary_attack": ("boundary", {}),
    # Wong et al. 2020, https://arxiv.org/abs/2001.03994: one step from a random start (give step_size = 1.25 epsilon)
    **dict.fromkeys(("ffgsm", "rs_fgsm", "fgsm_rs"), ("fgsm", {"random_start": True})),
    # de Jorge et al. 2022, https://arxiv.org/abs/2202.01181: from noise of twice the ball, and not back into it
    **dict.fromkeys(("nfgsm", "n_fgsm"), ("fgsm", {"noise": 2.0})),
    # the parts of AutoAttack, https://arxiv.org/abs/2003.01690
    **dict.fromkeys(("auto_pgd", "autopgd"), ("apgd", {})),
    "apgd_ce": ("apgd", {"loss": "cross_entropy"}),
    "pma": ("apgd", {"loss": "probability_margin"}),  # its loss, https://arxiv.org/abs/2411.15210, under APGD's steps
    "apgd_dlr": ("apgd", {"loss": "dlr"}),
    **dict.fromkeys(("apgd_t", "apgdt"), ("apgd", {"loss": "targeted_dlr"})),
    **dict.fromkeys(("fab_t", "fabt"), ("fab", {"targeted": True})),
    **dict.fromkeys(("square_attack", "squareattack"), ("square", {})),
}
ELSEWHERE = {
    **dict.fromkeys(("aa", "autoattack", "auto_attack"), "evaluation.autoattack(logits_fn, images, labels, ...)"),
}
