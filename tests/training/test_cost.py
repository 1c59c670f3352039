"""What training costs is counted in its program: the passes that a reader counts in each method's formula come out."""

import pytest

from robust_vit.main import parse
from robust_vit.training import cost

MADRY, PGD_7 = "--config=digits:adversarial", 7 * 2


def counted(arguments):
    return cost.forwards(parse(["train", *arguments.split(), "--workdir=runs/x"])[0])


FEW = [
    ("--config=digits:gradient_norm", 6),  # two passes, each differentiated in its input and its weights
    ("--config=digits:hat --config.objective.teacher=t", 1 + PGD_7 + 1 + 9),
    (f"{MADRY} --config.attack.name=apgd --config.attack.steps=2", 2 * 2 + 1 + 3),  # the last point is judged
]
MORE = [
    (f"{MADRY} --config.attack.keep=loss", PGD_7 + 1 + 3),
    (f"{MADRY} --config.optimizer.accumulation=2", PGD_7 + 3),
    (f"{MADRY} --config.attack.name=fgsm --config.objective.options.grad_align=0.2", 2 + 3 + 2 + 6),
    ("--config=digits:deit_soft --config.objective.teacher=t", 3 + 1),
    ("--config=digits:trades --config.awp.gamma=0.01", 1 + PGD_7 + 6 + 6),
    ("--config=digits:fare --config.objective.teacher=t", 1 + PGD_7 + 3),
]


@pytest.mark.parametrize(("arguments", "passes"), [*FEW, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)])
def test_passes_are_counted_in_the_program(arguments, passes):
    assert counted(f"{arguments} --config.training.epochs=20") == pytest.approx(20 * passes, rel=1e-3)


def test_a_stage_of_small_images_costs_its_share_of_the_tokens():
    staged = "--config.stages.epochs=(10.,10.) --config.stages.image_sizes=(4,8) --config.stages.steps=(1,3)"
    whole = counted(f"{MADRY} --config.training.epochs=20 {staged}")
    assert whole == pytest.approx(10 * (2 + 3) / 4 + 10 * (6 + 3), rel=0.01)  # 98 steps a stage, and the head


def test_a_pass_is_one_whatever_the_model():
    assert counted("--config=ablations/digits:resnet --config.model.stem_width=8") == 40 * 17


def test_an_uncounted_attack_is_named():
    with pytest.raises(ValueError, match="^attack.name = 'square': must be one of pgd, fgsm, apgd"):
        counted("--config=digits --config.attack.name=square")
