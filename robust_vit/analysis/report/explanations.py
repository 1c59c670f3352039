"""The findings of the masking report in plain words: what was asked, and why the answer matters.

What was seen, and what to do, are in each finding; here stands what a stranger needs to make sense of them.
"""

from typing import NamedTuple


class Explanation(NamedTuple):
    """Of one kind of finding.

    Attributes:
      question: that it asks, in plain words.
      why: what it means for the robust accuracy when the answer is bad.
      remedy: what to do; used where the finding itself has no advice.
    """

    question: str
    why: str
    remedy: str


_NO_SLOPE = (
    "An attack that follows the gradient sees no slope here and stays where it is. It then fails, and the failure "
    "looks like robustness."
)
_BPDA = (
    "Attack through a smooth stand-in for the operation: robust-vit evaluate --adaptive=straight_through lets the "
    "forward pass be as it is and the gradient flow."
)
_WEAKER = (
    "A strong attack does whatever a weak one does, and more. Where the weak one wins, the strong one was misled by "
    "its gradients, and the accuracy under it is too high."
)

EXPLANATIONS: dict[str, Explanation] = {
    # What the program holds.
    "static_check": Explanation(
        "Does anything between the image and the logits hide the gradient?",
        "Rounding, thresholds, random bits and derivatives written by hand make the slope that an attack sees another "
        "one than that of the model.",
        "Nothing, where nothing was found.",
    ),
    "rounding": Explanation("Does the model round?", _NO_SLOPE, _BPDA),
    "sign": Explanation("Does the model take a sign?", _NO_SLOPE, _BPDA),
    "argmax": Explanation(
        "Does the model decide by an argmax before its logits?", _NO_SLOPE, "Attack the scores that it is taken from."
    ),
    "threshold": Explanation("Is a comparison used as a number?", _NO_SLOPE, _BPDA),
    "integer_cast": Explanation("Does a float become an integer on the way?", _NO_SLOPE, _BPDA),
    "dead_zone": Explanation("Does a threshold put a constant in place of a value?", _NO_SLOPE, _BPDA),
    "winners_take_all": Explanation("Do only the largest values pass?", _NO_SLOPE, _BPDA),
    "hash_gate": Explanation("Do bits of the image choose what passes?", _NO_SLOPE, _BPDA),
    "selection": Explanation("Are ranks or indices used as numbers?", _NO_SLOPE, "Attack the values that were ranked."),
    "stop_gradient": Explanation(
        "Does a stop_gradient cut the derivative?",
        "The attack climbs only a part of the function, and misses what it could reach by the rest.",
        "Remove it from the program that is attacked.",
    ),
    "custom_gradient": Explanation(
        "Is a derivative written by hand?",
        "If it is not the derivative of the function, the attack climbs a hill that is not there.",
        "Attack with the derivative of the function itself.",
    ),
    "randomness": Explanation(
        "Does the model draw random numbers?",
        "Each gradient is of another function than the next one, and steps cancel: noise protects from the attack, not "
        "from an attacker who averages.",
        "Average gradients and predictions over draws: autoattack_version=rand.",
    ),
    "while_loop": Explanation(
        "Does a loop of unknown length stand in the way?",
        "There is no derivative through it, so no gradient attack has run at all.",
        "Attack a loop of fixed length, and use black-box attacks.",
    ),
    "test_time_gradient": Explanation(
        "Does the model optimise something when it is called?",
        "An attack that treats the result of that optimisation as a constant misses how it answers the image.",
        "Attack through the unrolled optimiser, and the model without it.",
    ),
    "loop_over_image": Explanation(
        "Does a loop change the image first (purification)?",
        "Gradients through many steps vanish or explode; defences of this kind have fallen to attacks through "
        "all steps.",
        "Attack through all of its steps, and the model without it.",
    ),
    "callback": Explanation(
        "Does the program leave JAX?",
        "Nobody knows the derivative of what happens outside, and gradient attacks say nothing about it.",
        "Use black-box attacks, or write it in JAX.",
    ),
    "hidden_gradient": Explanation(
        "Is the gradient the slope of the function?",
        "Where the two differ, the attack walks in a direction that the model does not care about.",
        "Attack the program without its stop_gradient and custom derivatives.",
    ),
    # What the outputs are.
    "nonfinite_logits": Explanation(
        "Are all logits numbers?",
        "NaN compares false with everything: an attack that looks for a larger loss never finds it, and counts the "
        "point as robust.",
        "Repair the model.",
    ),
    "probabilities_as_logits": Explanation(
        "Are the outputs logits, and not probabilities?",
        "The loss takes a softmax. A second one squeezes all differences, and the gradient with them.",
        "Hand on the logits, before the softmax.",
    ),
    "endless_loop": Explanation(
        "Does every loop of the model end, on every image that an attack may show it?",
        "A model that does not answer cannot be measured, and is not robust.",
        "Bound its loops.",
    ),
    "repeatability": Explanation(
        "Does the same image give the same logits twice?",
        "The attack's verdict may be luck, and the verification of it may be another draw.",
        "Average over draws (EOT): autoattack_version=rand.",
    ),
    "batch_dependence": Explanation(
        "Are the logits of an image the same in any batch?",
        "What was broken in one batch may stand in another: the attack and its judge see two models.",
        "Switch off what depends on the batch.",
    ),
    # What the gradients are.
    "unavailable_gradients": Explanation(
        "Is there a gradient to follow?",
        "A gradient that is zero or not a number moves nothing. The attack gives up where it began.",
        "Attack a loss of the logits (DLR, margin), or through a substitute.",
    ),
    "saturated_loss": Explanation(
        "Has the softmax lost a gradient that the logits still have?",
        "With very large logits the cross-entropy is exactly 0 in float32 and so is its slope, though the decision may "
        "be close.",
        "Divide the logits by a temperature, or attack the margin.",
    ),
    "saturated_activation": Explanation("Is an activation flat almost everywhere?", _NO_SLOPE, _BPDA),
    "gradient_mismatch": Explanation(
        "Does the gradient predict what the logits do?",
        "If a small step changes the logits otherwise than the gradient says, all gradient attacks aim wrong.",
        "Find the operation that breaks it, and replace it.",
    ),
    "straight_through": Explanation(
        "Does an attack do better when gradients pass what hides them?",
        "If so, the robustness was owed to hidden gradients, and an attacker has no reason not to pass them.",
        "Report the accuracy under --adaptive=straight_through.",
    ),
    # How attacks fared.
    "one_step": Explanation("Does one step break what many steps do not?", _WEAKER, "Distrust the figure."),
    "noise": Explanation(
        "Does random noise do what the attack does?",
        "An attack no better than noise has found no direction; the model may be weak and look strong.",
        "Distrust the figure: the gradients are masked.",
    ),
    "black_box": Explanation(
        "Does an attack without gradients break what gradients do not?", _WEAKER, "Report AutoAttack, with Square."
    ),
    "transfer": Explanation(
        "Do adversarial images of another model break what the attack on this one does not?",
        _WEAKER,
        "Give another model: --transfer_from.",
    ),
    "cross_entropy_against_dlr": Explanation(
        "Does a loss without softmax break much more?",
        "Then the softmax is saturated, and an accuracy under cross-entropy alone is too high.",
        "Report the accuracy under DLR, margin and targeted losses.",
    ),
    "cross_entropy_against_margin": Explanation(
        "Does a loss without softmax break much more?",
        "Then the softmax is saturated, and an accuracy under cross-entropy alone is too high.",
        "Report the accuracy under DLR, margin and targeted losses.",
    ),
    "epsilon_sweep": Explanation(
        "Does accuracy fall to nothing as the attack is allowed more?",
        "Where every image may become every other, no model can stand. One that seems to has an attack that failed.",
        "Distrust the figure: the gradients are masked.",
    ),
    "loss_against_steps": Explanation(
        "Does the loss climb as the attack walks?",
        "If it does not, the steps do not follow the loss, and more of them prove nothing.",
        "Try smaller steps, and look at the gradient.",
    ),
    "silent_success": Explanation(
        "Did the attack forget what it had found?",
        "Points broken on the way and whole at the end count as robust though an adversarial image was in hand.",
        "Keep the best iterate: keep='success'.",
    ),
    "incomplete_optimisation": Explanation(
        "Had the attack come to rest when it stopped?",
        "A loss that still climbs says that more steps would break more points.",
        "Attack with more steps before believing the figure.",
    ),
    "unstable_predictions": Explanation(
        "Is the model calm around the points that stand?",
        "A surface that jumps gives gradients of its noise and not of its shape.",
        "Average gradients over draws or over a neighbourhood.",
    ),
}


def of(name: str) -> Explanation:
    """The explanation of a finding; of one that nobody explained, its name."""
    unknown = Explanation(
        name.replace("_", " "), "A rule of the masking report; its threshold stands beside it.", "See the report."
    )
    return EXPLANATIONS.get(name, unknown)
