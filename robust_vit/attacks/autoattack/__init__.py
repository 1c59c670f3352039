"""The parts of AutoAttack: APGD, FAB and Square as runs of one stepping protocol, and the attacks made of them.

`protocol` is what a scheduler may do with a run; `factories` turns a run into an `Attack`.
"""
