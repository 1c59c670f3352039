"""Checkpoints: what is kept, what a damaged one does, what evaluation reads."""

import importlib.resources
import json
import random
import resource
import shutil
import warnings

import jax
import jsonschema
import numpy as np
import pytest
from tiny_run import config

from robust_vit import data, locks
from robust_vit.training import checkpoint, digests, experiment, loop, state


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run, finished: its folder and its result."""
    workdir = tmp_path_factory.mktemp("run")
    result = loop.run(config(optimizer__ema_decay=0.9, training__keep_checkpoints=3), workdir, live=False)
    return workdir, result


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run that a test may damage."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def shapes(workdir):
    made = config(optimizer__ema_decay=0.9, training__keep_checkpoints=3)
    e = experiment.build(made)
    shape = jax.eval_shape(lambda: state.create(e.module, e.tx, e.dataset.image_shape, 0, True))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shape)


def test_a_run_leaves_its_folder_complete(finished):
    workdir, result = finished
    for name in ("config.json", "environment.json", "metrics.jsonl", "result.json", "curves.png", "examples.png"):
        assert (workdir / name).stat().st_size > 0, name
    assert json.loads((workdir / "result.json").read_text()) == result
    assert result["clean"]["examples"] == 360 and result["weights"]["step"] >= 1
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == list(range(1, 13))
    assert {"loss", "robust_accuracy", "epsilon", "learning_rate", "images_per_second", "step_seconds"} <= set(
        train[-1]
    )
    assert "compile_seconds" in train[0] and "clean_accuracy" not in train[0]
    validation = [row for row in rows if row["kind"] == "validation"]
    assert {"clean_accuracy", "robust_accuracy", "ema_clean_accuracy", "ema_robust_accuracy"} <= set(validation[-1])


def test_rows_of_a_run_follow_the_schema(finished):
    schema = json.loads((importlib.resources.files("robust_vit") / "schemas" / "metrics.schema.json").read_text())
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        jsonschema.validate(row, schema)
    named = {name for part in schema["allOf"] for name in part["then"]["properties"]} | set(schema["properties"])
    assert {name for row in rows for name in row} <= named  # all that is written is described


def test_the_latest_few_and_the_best_are_kept(finished):
    workdir, _ = finished
    checkpoints = checkpoint.Checkpoints(workdir, select="ema_robust_accuracy", read_only=True)
    steps = sorted(checkpoints.manager.all_steps())
    best = checkpoints.best()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scores = [(row["ema_robust_accuracy"], row["step"]) for row in rows if row["kind"] == "validation"]
    assert set(steps[-3:]) | {best} == set(steps) and steps[-1] == 12
    assert checkpoints.metrics(best)["ema_robust_accuracy"] == max(scores)[0]


def test_evaluation_reads_raw_and_averaged_weights(finished):
    workdir, _ = finished
    _, _, raw, step = checkpoint.load(workdir, "latest", "raw")
    _, module, averaged, _ = checkpoint.load(workdir, "latest", "ema")
    assert step == 12 and module.depth == 1
    same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(raw), jax.tree.leaves(averaged))]
    assert not all(same)


@pytest.mark.parametrize(
    ("step", "weights", "message"),
    [("best", "swa", "weights = 'swa': must be"), (999, "raw", "step = 999: no such checkpoint")],
)
def test_asking_for_what_is_not_there(finished, step, weights, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.load(finished[0], step, weights)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match="holds no config.json"):
        checkpoint.load(tmp_path)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(run):
    checkpoints = checkpoint.Checkpoints(run, keep=3, select="ema_robust_accuracy")
    newest = checkpoints.latest()
    before = sorted(checkpoints.manager.all_steps())[-2]
    for path in (run / "checkpoints" / str(newest) / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=rf"checkpoint .*{newest} is damaged"):
        restored, position = checkpoints.restore(shapes(run))
    assert int(restored.step) == before == position["step"]
    assert (run / "damaged" / str(newest)).is_dir()  # set aside, not deleted
    assert checkpoints.latest() == before


def test_a_folder_where_nothing_can_be_read_is_an_error_and_not_a_fresh_start(run):
    checkpoints = checkpoint.Checkpoints(run, keep=3)
    present = checkpoints.manager.all_steps()
    for step in checkpoints.manager.all_steps():
        shutil.rmtree(run / "checkpoints" / str(step) / "state")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match="no checkpoint in it can be read"),
    ):
        checkpoints.restore(shapes(run))
    assert checkpoints.manager.all_steps() == present  # nothing is set aside before another one has been read
    assert not (run / "damaged").exists()


def test_a_finished_run_is_not_trained_again(run, capsys):
    before = (run / "metrics.jsonl").read_text()
    written = (run / "config.json").stat().st_mtime_ns
    loop.run(config(optimizer__ema_decay=0.9, training__keep_checkpoints=3), run, live=False)
    assert (run / "metrics.jsonl").read_text() == before
    assert (run / "config.json").stat().st_mtime_ns == written  # once, for others may be reading it
    assert not (run / locks.NAME).exists()


def test_another_configuration_in_the_same_folder_is_refused(run):
    with pytest.raises(ValueError, match="attack.steps = 1 there, 2 here; choose another folder"):
        loop.run(config(optimizer__ema_decay=0.9, training__keep_checkpoints=3, attack__steps=2), run, live=False)


def test_a_non_finite_loss_stops_with_step_loss_and_last_good_checkpoint(tmp_path, monkeypatch):
    made = experiment.build(config())
    loop.claim(tmp_path, made.config)
    trainer = loop.Trainer(made, tmp_path, live=False)
    launch = trainer._launch

    def poisoned():
        step, rate, strength, metrics = launch()
        if step == 5:
            metrics = metrics | {"loss": np.float32(np.nan), "finite": np.bool_(False)}
        return step, rate, strength, metrics

    monkeypatch.setattr(trainer, "_launch", poisoned)
    with pytest.raises(loop.NonFiniteError, match=r"step 5: loss nan is not finite; the last good checkpoint is .*/4"):
        trainer.train()
    trainer.close()


# ------------------------------------------------------------------------------------------------- bit rot, and no rot


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Two checkpoints of the digits ViT, the shapes to restore them with, and the newer state."""
    folder = tmp_path_factory.mktemp("kept")
    e = experiment.build(config())
    first = jax.jit(lambda: state.create(e.module, e.tx, e.dataset.image_shape, 0, False))()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), first)
    checkpoints = checkpoint.Checkpoints(folder, select="robust_accuracy")
    for step in (1, 2):
        stepped = first.replace(step=first.step + step)
        checkpoints.save(step, stepped, {"step": step}, {"robust_accuracy": 0.1 * step})
    checkpoints.close()
    return folder, shape, stepped


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def restored_after(folder, shape, path, bit):
    """What a folder restores to with one bit of one file flipped: (state, position, warnings)."""
    flip(path, bit)
    checkpoints = checkpoint.Checkpoints(folder, select="robust_accuracy")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found, position = checkpoints.restore(shape)
    checkpoints.close()
    return found, position, [str(warning.message) for warning in said]


def refused_or_identical(kept, tmp_path, paths, flips):
    """Flips bits of the newest checkpoint's files, one at a time; returns how often it was refused."""
    folder, shape, newest = kept
    rng, refused = random.Random(0), 0
    for path in paths:
        for _ in range(flips):
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            target = copy / path.relative_to(folder)
            found, position, said = restored_after(copy, shape, target, rng.randrange(8 * path.stat().st_size))
            if any("checkpoints/2 is damaged: " in line for line in said):
                refused += 1
                assert int(found.step) == position["step"] == 1
                assert (copy / "damaged" / "2").is_dir()
            else:
                assert position == {"step": 2}
                jax.tree.map(np.testing.assert_array_equal, found, newest)
            shutil.rmtree(copy)
    return refused


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a read that another one ended
def test_a_flipped_bit_of_weights_position_or_digests_is_refused_by_name(kept, tmp_path):
    newest = kept[0] / "checkpoints" / "2"
    data = [max(files(newest / "state" / "d"), key=lambda path: path.stat().st_size)]
    paths = [*data, newest / "data" / "metadata", newest / "record" / "metadata"]
    assert refused_or_identical(kept, tmp_path, paths, flips=1) == len(paths)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a read that another one ended
@pytest.mark.slow
def test_a_flipped_bit_of_any_file_is_refused_by_name_or_harmless(kept, tmp_path):
    paths = files(kept[0] / "checkpoints" / "2")
    assert len(paths) > 12
    assert refused_or_identical(kept, tmp_path, paths, flips=3) > len(paths)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a read that another one ended
def test_evaluation_refuses_other_bits_than_were_written(run):
    newest = checkpoint.Checkpoints(run, read_only=True).latest()
    (path,) = [path for path in files(run / "checkpoints" / str(newest) / "state" / "d")]
    flip(path, 8 * path.stat().st_size // 2)
    with pytest.raises(ValueError, match=rf"checkpoint .*/{newest} is damaged: .*; ask for another checkpoint"):
        checkpoint.load(run, "latest", "raw")


def test_metrics_that_cannot_be_believed_select_no_best(run):
    newest = checkpoint.Checkpoints(run, read_only=True).latest()
    path = run / "checkpoints" / str(newest) / "record" / "metadata"
    path.write_text(path.read_text().replace("ema_robust_accuracy", "ema_robust_accurate"))
    with pytest.raises(ValueError, match=rf"checkpoint .*/{newest} is damaged: its record"):
        checkpoint.load(run, "best")


def test_an_older_checkpoint_without_digests_is_read_with_a_note(kept, tmp_path):
    folder, shape, newest = kept
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "record")
    checkpoints = checkpoint.Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match="2 has no digests"):
        found, _ = checkpoints.restore(shape)
    jax.tree.map(np.testing.assert_array_equal, found, newest)


def test_intact_checkpoints_of_another_model_are_named_by_leaf_and_stay_where_they_are(run):
    e = experiment.build(config(model__width=32))
    shape = jax.eval_shape(lambda: state.create(e.module, e.tx, e.dataset.image_shape, 0, True))
    checkpoints = checkpoint.Checkpoints(run)
    present = checkpoints.manager.all_steps()
    with pytest.raises(
        ValueError, match=r"of another model.*: params/.* is float32\[.*\] there and float32\[.*\] here"
    ):
        checkpoints.restore(shape)
    assert checkpoints.manager.all_steps() == present and not (run / "damaged").exists()


def test_a_leaf_that_only_one_side_has_differs():
    one = {"params": {"w": np.zeros((2, 3), np.float32)}}
    two = {"params": {"w": np.zeros((2, 3), np.float32)}, "average": {"w": np.zeros(2, np.int32)}}
    sides = digests.describe(one), digests.describe(two)
    assert digests.difference(sides[0], sides[0]) is None
    assert digests.difference(*sides) == "average/w is absent there and int32[2] here"
    assert digests.difference(*sides[::-1]) == "average/w is int32[2] there and absent here"


# ------------------------------------------------------------------------------------------- what is saved, and where


def test_a_state_that_is_not_finite_is_never_written(kept, tmp_path):
    _, _, good = kept
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(2, good, {})
    bad = good.replace(params=good.params | {"head": jax.tree.map(lambda x: x.at[0].set(np.nan), good.params["head"])})
    with pytest.raises(checkpoint.NonFiniteError, match=r"step 3: params/head/bias is not finite, not saved; .*/2$"):
        checkpoints.wait()
        checkpoints.save(3, bad, {})
    assert checkpoints.latest() == 2
    checkpoints.close()


def test_a_disk_that_is_full_is_one_line_and_leaves_what_was_good(kept, tmp_path, capfd):
    _, shape, good = kept
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, good, {"step": 1})
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))  # a write past that fails as on a full disk
    try:
        with pytest.raises(checkpoint.StorageError) as error:
            checkpoints.save(2, good, {"step": 2})
            checkpoints.wait()
        checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = rf"workdir = '{tmp_path}': cannot write a checkpoint: File too large; the last good checkpoint is .*/1; make"
    assert error.match(line) and "\n" not in str(error.value)
    assert "Traceback" not in capfd.readouterr().err
    again = checkpoint.Checkpoints(
        tmp_path, read_only=True
    )  # resuming with space made: tests/training/test_recovery.py
    assert again.restore(shape)[1] == {"step": 1}


@pytest.mark.parametrize("name", ["lr[3]", "what?", "all*"])
def test_a_folder_whose_checkpoints_would_be_lost_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"must not contain . "):
        checkpoint.check_path(tmp_path / name)
    with pytest.raises(ValueError, match=r"must not contain"):
        loop.run(config(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"must be a folder; .*/file is a file$"):
            loop.run(config(), path)


def test_who_is_told_of_the_figures_may_change_between_a_run_and_its_resumption(run):
    made = config(optimizer__ema_decay=0.9, training__keep_checkpoints=3, training__trackers="csv")
    loop.claim(run, experiment.build(made).config)


@pytest.mark.parametrize(("content", "message"), [("", "is empty"), ('{"seed": 0, "da', "is no JSON")])
def test_a_torn_config_is_one_line(run, content, message):
    (run / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        loop.claim(run, config())
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        checkpoint.load(run)


def test_a_folder_in_use_is_refused_before_anything_is_compiled(tmp_path):
    with locks.hold(tmp_path), pytest.raises(ValueError, match=r"workdir = .*: in use by pid \d+ on .*"):
        loop.run(config(), tmp_path, live=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_data_that_changed_since_the_run_began_are_refused_by_split(tmp_path, split):
    """Twelve test images moved to train; or one label of the test split corrected."""
    images, labels = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 4

    def dataset(train, test, labels=labels):
        parts = {"train": train, "validation": slice(0, 8), "test": test}
        for name, part in parts.items():
            np.savez(tmp_path / f"{name}.npz", image=images[part], label=labels[part])
        return data.build("npz", path=str(tmp_path))

    loop.claim(tmp_path / "run", config(), dataset(slice(8, 20), slice(20, 40)))
    loop.claim(tmp_path / "run", config(), dataset(slice(8, 20), slice(20, 40)))
    if split == "train":
        changed, line = dataset(slice(8, 32), slice(32, 40)), r"train split is not .* \(12 examples there, 24 here;"
    else:
        changed, line = (
            dataset(slice(8, 20), slice(20, 40), np.where(np.arange(40) == 33, 0, labels)),
            "test split is not",
        )
    with pytest.raises(ValueError, match=line):
        loop.claim(tmp_path / "run", config(), changed)


def test_a_run_may_go_on_with_other_readers(tmp_path):
    """On a machine of other cores: no batch depends on who reads."""
    begun, resumed = config(), config()
    begun.data.workers, resumed.data.workers = 0, 4
    loop.claim(tmp_path, begun)
    loop.claim(tmp_path, resumed)
    resumed.data.batch_size += 1
    with pytest.raises(ValueError, match="holds a run with data.batch_size"):
        loop.claim(tmp_path, resumed)


def test_the_environment_of_a_resumption_is_noted_beside_the_first(tmp_path, monkeypatch):
    loop.claim(tmp_path, config())
    first = json.loads((tmp_path / "environment.json").read_text())
    loop.claim(tmp_path, config())
    assert json.loads((tmp_path / "environment.json").read_text()) == first
    monkeypatch.setattr(loop.provenance, "revision", lambda: "another")
    loop.claim(tmp_path, config())
    loop.claim(tmp_path, config())
    then = json.loads((tmp_path / "environment.json").read_text())
    assert [entry["git"] for entry in then.pop("resumed")] == ["another"] and then == first
