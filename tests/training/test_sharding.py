"""A state that is split over devices: the same numbers as copies of it, less memory, and one reduction a step."""

import functools
import re

import jax
import numpy as np
import pytest
from tiny_run import config

from robust_vit import attacks, models, objectives, parallel
from robust_vit.training import experiment, optimizer, programs, reduction, state, step

SHAPE, CLASSES, SIZE = (8, 8, 1), 10, 32


@functools.cache
def module():
    fields = dict(image_size=8, channels=1, patch_size=4, width=32, depth=1, heads=2, num_classes=CLASSES)
    return models.build("vit", **fields, pooling="mean", drop_path=0.5, scan=True)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (SIZE, *SHAPE), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, SIZE, dtype=np.int32),
        "index": np.arange(SIZE, dtype=np.int32),
    }


class Trained:
    """Two steps in two parts each on some devices, of a model that draws; the program's text."""

    def __init__(self, devices, sharding="replicated", accumulation=2, objective="adversarial"):
        mesh = parallel.mesh(devices)
        tx = optimizer.build("adamw", weight_decay=0.1)
        place = {}
        if sharding != "replicated":
            place = {"gather": parallel.constrained(mesh), "scatter": parallel.constrained(mesh, sharding)}
        if accumulation > 1 and devices > 1:
            place["once"] = functools.partial(reduction.once, mesh=mesh, parts=accumulation)
        attack = attacks.pgd(norm="linf", epsilon=0.1, step_size=0.05, steps=2, keep="last")
        made = step.make(
            module(), objectives.build(objective), attack, tx, num_classes=CLASSES, seed=0, ema_decay=0.9,
            accumulation=accumulation, **place,
        )  # fmt: skip
        start = state.create(module(), tx, SHAPE, 0, True)
        places = parallel.layout(mesh, start, sharding)
        compiled = parallel.compile(made, mesh, arguments="sbrr", results="sr", donate=(0,), state=places)
        given = [(parallel.global_batch(mesh, batch(seed)), np.float32(0.01), np.float32(1.0)) for seed in range(2)]
        self.state, self.losses = parallel.copied(start, places), []
        program = compiled.lower(self.state, *given[0]).compile()
        self.text, self.held = program.as_text(), program.memory_analysis().argument_size_in_bytes
        for rest in given:
            self.state, metrics = program(self.state, *rest)
            self.losses.append(float(metrics["loss"]))
        self.params = jax.device_get(self.state.params)


@pytest.fixture(scope="module")
def alone():
    return Trained(1)


@pytest.fixture(scope="module")
def split():
    return Trained(8, "fsdp")


def close(a, b):
    np.testing.assert_allclose(a.losses, b.losses, rtol=2e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-3), a.params, b.params)


def inside_loops(text):
    """The computations that a program's loops run, as text."""
    computations = {part.split()[0].lstrip("%"): part for part in re.split(r"\n}\n+", text) if part.split()}
    found, todo = {}, re.findall(r"body=%?([\w.\-]+)", text)
    while todo:
        name = todo.pop()
        if name not in found and name in computations:
            found[name] = computations[name]
            todo += re.findall(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)", found[name])
    return found


def test_a_split_state_and_parts_that_meet_once_give_the_same_numbers(alone, split):
    """Also what drop path draws for the batch."""
    close(alone, split)


def test_weights_moments_and_averages_are_split(alone, split):
    kernel = split.state.params["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    assert split.held < 0.55 * alone.held  # on one device; biases and small kernels are whole
    leaves = jax.tree_util.tree_leaves_with_path(split.state)
    names = {jax.tree_util.keystr(path): leaf.sharding.is_fully_replicated for path, leaf in leaves}
    mine = [whole for name, whole in names.items() if "fc1" in name and "kernel" in name]
    assert len(mine) == 4 and not any(mine)  # the weight, two moments, the average


def test_devices_meet_outside_of_the_loops_over_parts_and_attack_steps(split):
    """Weights are gathered once and not by every pass of the attack; gradients are added up once and not by part."""
    loops = inside_loops(split.text)
    assert len(loops) > 2 and any("dot" in loop for loop in loops.values())
    assert not any(re.search(r"all-reduce|all-gather|reduce-scatter|all-to-all", loop) for loop in loops.values())
    assert "all-gather" in split.text and re.search("all-reduce|reduce-scatter", split.text)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("sharding", parallel.SHARDINGS)
@pytest.mark.parametrize(("accumulation", "objective"), [(1, "trades"), (4, "adversarial")])
def test_every_placement_gives_the_same_numbers(devices, sharding, accumulation, objective):
    found = Trained(devices, sharding, accumulation, objective)
    close(Trained(1, "replicated", accumulation, objective), found)
    if sharding == "replicated":
        assert len(re.findall(r"= .*all-reduce(?:-start)?\(", found.text)) == 1


def test_what_is_named_stays_whole():
    mesh = parallel.mesh(8)
    tree = {"params": {"head": {"kernel": np.zeros((64, 128))}, "body": {"kernel": np.zeros((64, 128))}}}
    found = parallel.layout(mesh, tree, "fsdp", ["head"])["params"]
    assert found["head"]["kernel"].is_fully_replicated
    assert found["body"]["kernel"].spec == jax.sharding.PartitionSpec(None, "data")
    odd = parallel.layout(mesh, {"kernel": np.zeros((63, 129)), "small": np.zeros(8)}, "fsdp")
    assert all(one.is_fully_replicated for one in odd.values())


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (dict(parallel__sharding="zero"), "parallel.sharding = 'zero': must be one of fsdp, replicated"),
        (dict(parallel__whole=("head",)), "parallel.whole = ('head',): must be left out with parallel.sharding"),
        (dict(parallel__whole=("haed",), parallel__sharding="fsdp"), "parallel.whole = 'haed': must be a pattern of"),
        (dict(parallel__devices=8, data__batch_size=60), "data.batch_size = 60: must be divisible by the number of"),
    ],
)
def test_bad_fields_are_one_line(overrides, line):
    with pytest.raises(ValueError) as raised:
        experiment.build(config(**overrides))
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_a_configuration_places_its_state():
    built = experiment.build(config(parallel__sharding="fsdp", parallel__devices=8, model__width=64))
    places = programs.places(built)
    whole = [place.is_fully_replicated for place in jax.tree.leaves(places)]
    assert not all(whole) and any(whole)
    shapes = programs.abstract_state(built)
    assert [leaf.sharding for leaf in jax.tree.leaves(shapes)] == jax.tree.leaves(places)
