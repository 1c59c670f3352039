"""Learning from a teacher: DeiT without an attack; RSLAD, ARD and LTD with one.

The teacher, `Aside.teacher`, is a frozen classifier of the same images and classes. It sees clean images only, in
evaluation mode, and no gradient passes through it.
"""
