"""What training begins from: every tensor is accounted for, and nothing that was not asked for changes shape."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny_run

from robust_vit import config as config_lib
from robust_vit import models
from robust_vit.models.parts import forms, positions
from robust_vit.models.weights import converted, torch_weights
from robust_vit.training import checkpoint, experiment, initial, loop, optimizer, state

VIT = dict(image_size=8, channels=1, patch_size=4, width=16, depth=2, heads=2, num_classes=10, positions="learned")
SWIN = dict(
    image_size=16, channels=1, patch_size=2, window_size=8, width=8, depths=(1, 1), heads=(1, 2), num_classes=10
)
XCIT = dict(image_size=32, channels=1, patch_size=16, width=16, depth=1, heads=2, class_depth=1, num_classes=10)


@functools.cache
def drawn(name, **overrides):
    """A model with weights, none of which is 0 or 1."""
    module = models.build(name, **overrides)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, *models.image_shape(module)), np.float32))
    return module, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of converted weights by name, and "file": the ViT's as a safetensors file."""
    place = tmp_path_factory.mktemp("weights")
    for name, overrides in {"vit": VIT, "swin": SWIN, "xcit": XCIT}.items():
        converted.save(place / name, name, *drawn(name, **overrides))
    torch_weights.save_timm(place / "file.safetensors", *drawn("vit", **VIT))
    return place


def section(path, **changes):
    made = config_lib.base().initial
    made.weights = str(path)
    for name, value in changes.items():
        made[name] = value
    return made


def loaded(path, name, overrides, **changes):
    return initial.load(section(path, **changes), models.build(name, **overrides))


def flat(tree):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def equal(there, here):
    there, here = flat(there), flat(here)
    assert there.keys() == here.keys()
    for name in there:
        np.testing.assert_array_equal(there[name], here[name], err_msg=name)


@pytest.mark.parametrize("name", ["vit", "file.safetensors"])
def test_the_same_model_takes_every_tensor(folders, name):
    found = loaded(folders / name, "vit", VIT)
    equal(found.variables, drawn("vit", **VIT)[1])
    content = found.content
    assert content["kind"] == ("file" if "." in name else "converted") and not content["new"]
    assert content["taken"]["patch_embed.proj.weight"] == [16, 1, 4, 4]
    assert len(content["taken"]) == len(jax.tree.leaves(found.variables))
    assert content["sha256"] == loaded(folders / "vit", "vit", VIT | {"scan": True}).content["sha256"]


def test_scanned_blocks_take_the_weights_of_unrolled_ones(folders):
    found = loaded(folders / "vit", "vit", VIT | {"scan": True})
    module = models.build("vit", **VIT, scan=True)
    equal(forms.to_unrolled(module, found.variables), drawn("vit", **VIT)[1])


def test_other_classes_draw_a_new_head_and_the_rest_is_taken(folders):
    module = models.build("vit", **VIT | {"num_classes": 4})
    found = initial.load(section(folders / "vit"), module)
    tx = optimizer.build("sgd")

    @jax.jit
    def both(given):
        return [state.create(module, tx, (8, 8, 1), 0, True, initial=one) for one in (None, given)]

    scratch, made = both(found.variables)
    equal(made.params["head"], scratch.params["head"])
    source = drawn("vit", **VIT)[1]["params"]
    equal({k: v for k, v in made.params.items() if k != "head"}, {k: v for k, v in source.items() if k != "head"})
    equal(made.average["params"], made.params)
    assert found.content["new"] == {"head.bias": [4], "head.weight": [4, 16]}
    assert found.content["left_out"] == {"head.bias": [10], "head.weight": [10, 16]}
    assert "reshaped head.weight: 10x16 -> 4x16, initialised anew" in str(found)


def test_a_new_head_can_be_asked_for_and_an_old_one_insisted_on(folders):
    assert set(loaded(folders / "vit", "vit", VIT, head="new").content["new"]) == {"head.bias", "head.weight"}
    with pytest.raises(ValueError, match=r"head.weight is 10x16, must be 4x16.*set initial.head = 'new'"):
        loaded(folders / "vit", "vit", VIT | {"num_classes": 4}, head="keep")


def test_parts_can_be_left_out_and_are_drawn_anew(folders):
    found = loaded(folders / "vit", "vit", VIT | {"patch_size": 2}, leave_out=("patch_embed", "*/mlp/fc1/bias"))
    assert found.content["new"] == {
        "patch_embed.proj.weight": [16, 1, 2, 2],
        "patch_embed.proj.bias": [16],
        "blocks.0.mlp.fc1.bias": [64],
        "blocks.1.mlp.fc1.bias": [64],
    }
    assert set(found.content["left_out"]) == set(found.content["new"]) and set(found.content["resized"]) == {
        "pos_embed"
    }
    shallow = loaded(folders / "vit", "vit", VIT | {"depth": 1}, leave_out=("blocks_1",))
    assert len(shallow.content["left_out"]) == 12 and not shallow.content["new"]


@pytest.mark.parametrize(("resize", "antialias"), [("plain", False), ("antialias", True)])
def test_learned_positions_are_resized_to_the_grid_of_the_new_images(folders, resize, antialias):
    found = loaded(folders / "vit", "vit", VIT | {"image_size": (16, 24)}, resize=resize)
    old = drawn("vit", **VIT)[1]["params"]["pos_embed"]
    prefix = old.shape[1] - 4
    expected = positions.resize_learned(old, (2, 2), (4, 6), prefix, antialias)
    np.testing.assert_array_equal(found.variables["params"]["pos_embed"], expected)
    assert found.content["resized"] == {"pos_embed": {"there": [1, 4 + prefix, 16], "here": [1, 24 + prefix, 16]}}


def test_tables_of_relative_positions_are_resized_to_the_new_windows(folders):
    found = loaded(folders / "swin", "swin", SWIN | {"image_size": 8})  # windows of 8, then 4 -> of 4, then 2
    table = "layers_0/blocks_0/attn/relative_position_bias_table"
    old, new = flat(drawn("swin", **SWIN)[1]["params"])[table], flat(found.variables["params"])[table]
    np.testing.assert_array_equal(new, positions.resize_relative(old, (8, 8), (4, 4)))
    assert len(found.content["resized"]) == 2


@pytest.mark.parametrize("patch", [8, 4, 2])
def test_strides_alone_change_with_the_patch_of_an_xcit(folders, patch):
    overrides = XCIT | {"patch_size": patch}
    found = loaded(folders / "xcit", "xcit", overrides)
    equal(found.variables, drawn("xcit", **XCIT)[1])
    assert found.report.notes == [f"model.patch_size: 16 there, {patch} here"]
    module = models.build("xcit", **overrides)
    _, captured = jax.eval_shape(
        lambda v, x: models.capture(module, v, x, ["tokens"]), found.variables, np.zeros((1, 32, 32, 1), np.float32)
    )
    assert captured["tokens"][0].shape == (1, 32 // patch, 32 // patch, 16)


@pytest.mark.parametrize(
    ("name", "target", "overrides", "changes", "message"),
    [
        ("vit", "vit", VIT | {"image_size": 16}, dict(resize=""), r"pos_embed is .* set initial.resize = 'plain'"),
        ("vit", "vit", VIT | {"depth": 3}, {}, r"do not fit ViT: .* missing \(blocks.2.attn"),
        ("vit", "vit", VIT | {"depth": 1}, {}, r"do not fit ViT: .* unexpected \(blocks.1.attn"),
        ("vit", "vit", VIT | {"width": 32}, {}, r"of another shape"),
        ("vit", "vit", VIT | {"patch_size": 2}, {}, r"patch_embed.proj.weight is 16x1x4x4, must be 16x1x2x2"),
        ("vit", "swin", SWIN, {}, r"do not fit Swin: "),
        ("vit", "vit", VIT, dict(checkpoint="latest"), r"initial.checkpoint = 'latest': must be left at 'best'"),
        ("vit", "vit", VIT, dict(leave_out=("stem",)), r"initial.leave_out = 'stem': names no parameter"),
        ("file.safetensors", "vit", VIT, dict(average="raw"), r"initial.average = 'raw': must be '' or 'ema'"),
        ("file.safetensors", "vit", VIT, dict(average="ema"), r"ema = True: must be left out"),
    ],
)
def test_what_fits_nowhere_is_one_line(folders, name, target, overrides, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        loaded(folders / name, target, overrides, **changes)
    line = str(error.value)
    assert line.startswith(f"initial.weights = '{folders / name}': ") and "\n" not in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(initial__weights="nowhere"), r"initial.weights = 'nowhere': must be a run folder, a folder of"),
        (dict(initial__head="new"), r"initial.head = 'new': must be left at 'auto' without initial.weights"),
        (dict(initial__checkpoint="last"), r"initial.checkpoint = 'last': must be 'best', 'latest' or a step"),
    ],
)
def test_a_bad_section_is_named(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        experiment.build(tiny_run.config(**changes))
    assert "\n" not in str(error.value)


def test_the_digest_of_what_a_run_began_with_is_part_of_it(folders, tmp_path):
    found = loaded(folders / "vit", "vit", VIT)
    initial.claim(tmp_path, found)
    assert json.loads((tmp_path / "initial.json").read_text())["sha256"] == found.content["sha256"]
    initial.claim(tmp_path, found)
    with pytest.raises(ValueError, match=r"are not those that the run in .* began with"):
        initial.claim(tmp_path, loaded(folders / "vit", "vit", VIT, head="new"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of one step that was trained without an attack, and the configuration of one that begins from it."""
    place = tmp_path_factory.mktemp("runs")
    short = dict(training__epochs=0.05, optimizer__warmup_epochs=0.0, attack__warmup_epochs=0.0)
    config = tiny_run.config(objective__name="standard", optimizer__ema_decay=0.9, **short)
    made = experiment.build(config)
    loop.claim(place / "natural", config)
    trainer = loop.Trainer(made, place / "natural", live=False)
    trainer.validators = {}
    assert trainer.train()
    trainer.close()
    return place, tiny_run.config(initial__weights=str(place / "natural"), model__scan=True)


@pytest.mark.parametrize("average", ["", "raw", "ema"])
def test_a_run_begins_where_another_ended(runs, tmp_path, average):
    place, config = runs
    config.initial.average = average
    made = experiment.build(config)
    begin = initial.load(config.initial, made.module)
    trainer = loop.Trainer(made, tmp_path, live=False, begin=begin)
    trainer.close()
    source = checkpoint.load(place / "natural", "latest", average or "ema")[2]
    equal(forms.to_unrolled(made.module, trainer.state.variables()), source)
    assert begin.content["step"] == 1 and trainer.step == 0


@pytest.mark.slow
def test_natural_first_and_adversarial_after_are_two_commands(tmp_path):
    natural, robust = tmp_path / "natural", tmp_path / "robust"
    loop.run(tiny_run.config(objective__name="standard"), natural, live=False)
    config = tiny_run.config(initial__weights=str(natural), training__epochs=0.6)
    loop.run(config, robust, live=False)
    content = json.loads((robust / "initial.json").read_text())
    assert content["kind"] == "run" and not content["new"] and not content["left_out"]
    result = json.loads((robust / "result.json").read_text())
    shutil.rmtree(natural)  # resuming never looks there again
    shutil.rmtree(max((robust / "checkpoints").glob("*"), key=lambda path: int(path.name)))
    loop.run(config, robust, live=False)
    again = json.loads((robust / "result.json").read_text())
    assert again["weights"] == result["weights"] and again["clean"]["accuracy"] == result["clean"]["accuracy"]
    with pytest.raises(ValueError, match=r"initial.weights = .*natural': must be a run folder"):
        loop.run(config, tmp_path / "another", live=False)
    assert not pathlib.Path(tmp_path / "another" / "config.json").exists()
