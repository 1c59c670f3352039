"""Checkpoints: what is kept, what a damaged one does, what evaluation reads."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny_run import config

from robust_vit.training import checkpoint, experiment, loop, state


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
    for step in checkpoints.manager.all_steps():
        shutil.rmtree(run / "checkpoints" / str(step) / "state")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match="no checkpoint in it can be read"),
    ):
        checkpoints.restore(shapes(run))


def test_a_finished_run_is_not_trained_again(run, capsys):
    before = (run / "metrics.jsonl").read_text()
    loop.run(config(optimizer__ema_decay=0.9, training__keep_checkpoints=3), run, live=False)
    assert (run / "metrics.jsonl").read_text() == before


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
