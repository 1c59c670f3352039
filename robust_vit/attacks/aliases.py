"""Names that people type for attacks that stand here under another one: what each means, as keywords of that attack."""

from typing import Any

# alias -> (name in `attacks.ATTACKS`, its defaults). Written small, with underscores: `MI-FGSM` is read as `mi_fgsm`.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    # Kurakin et al. 2017, https://arxiv.org/abs/1607.02533: PGD from the clean image
    **dict.fromkeys(("bim", "ifgsm", "i_fgsm"), ("pgd", {"random_start": False})),
    # Dong et al. 2018, https://arxiv.org/abs/1710.06081: momentum of decay 1 from the clean image
    **dict.fromkeys(("mim", "mifgsm", "mi_fgsm"), ("pgd", {"random_start": False, "momentum": 1.0, "keep": "last"})),
    # Wong et al. 2020, https://arxiv.org/abs/2001.03994: one step from a random start (give step_size = 1.25 epsilon)
    **dict.fromkeys(("ffgsm", "rs_fgsm", "fgsm_rs"), ("fgsm", {"random_start": True})),
    # de Jorge et al. 2022, https://arxiv.org/abs/2202.01181: from noise of twice the ball, and not back into it
    **dict.fromkeys(("nfgsm", "n_fgsm"), ("fgsm", {"noise": 2.0})),
    # the parts of AutoAttack, https://arxiv.org/abs/2003.01690
    **dict.fromkeys(("auto_pgd", "autopgd"), ("apgd", {})),
    "apgd_ce": ("apgd", {"loss": "cross_entropy"}),
    "apgd_dlr": ("apgd", {"loss": "dlr"}),
    **dict.fromkeys(("apgd_t", "apgdt"), ("apgd", {"loss": "targeted_dlr"})),
    **dict.fromkeys(("fab_t", "fabt"), ("fab", {"targeted": True})),
    **dict.fromkeys(("square_attack", "squareattack"), ("square", {})),
}
ELSEWHERE = {
    **dict.fromkeys(("aa", "autoattack", "auto_attack"), "evaluation.autoattack(logits_fn, images, labels, ...)"),
}
