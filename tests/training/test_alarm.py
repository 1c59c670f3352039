"""Catastrophic overfitting is measured, named, and ends a run where it is told to."""

import json

import numpy as np
import pytest
import tiny_run

from robust_vit.training import alarm, checkpoint, experiment, loop

GAPS = (0.01, 0.02, 0.5)  # at the validations after steps 6, 12 and 18


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def overfit(workdir, action, monkeypatch, gaps=GAPS):
    """A run whose third validation finds a gap, as told, and what it said."""
    config = tiny_run.config(
        alarm__examples=64,
        alarm__gap=0.2,
        alarm__action=action,
        training__epochs=1.2,
        training__save_every_epochs=0.15,
        evaluation__suite="",
    )
    left, said = list(gaps), []

    def look(self, number, variables, strength):
        gap = left.pop(0)
        return {"training_attack_accuracy": 0.9, "apgd_accuracy": 0.9 - gap, "gap": gap}

    monkeypatch.setattr(alarm.Alarm, "look", look)
    made = experiment.build(config)
    loop.claim(workdir, config)
    trainer = loop.Trainer(made, workdir, live=False)
    trainer.validators = {"robust_accuracy": Constant()}
    trainer.progress.say = said.append
    finished = trainer.train()
    trainer.close()
    saved = checkpoint.Checkpoints(workdir, read_only=True)
    return finished, trainer, [line for line in said if "overfitting" in line], sorted(saved.manager.all_steps())


class Constant:
    """A measurer that is always content."""

    accuracy = 0.9

    def measure(self, *_):
        return self


LINE = (
    "step 18: catastrophic overfitting: 90.0% right under the training attack, 40.0% under APGD-10, a gap of 50.0%,"
    " more than alarm.gap = 20.0%"
)


def test_report_names_it_and_trains_on(tmp_path, monkeypatch):
    finished, trainer, said, _ = overfit(tmp_path, "report", monkeypatch, (*GAPS, 0.0))
    assert finished and trainer.step == 24 and said == [LINE] and not alarm.ended(tmp_path)
    assert [row["gap"] for row in rows(tmp_path) if row["kind"] == "validation"] == [*GAPS, 0.0]


def test_stop_saves_where_it_is_and_trains_no_further(tmp_path, monkeypatch):
    finished, trainer, said, saved = overfit(tmp_path, "stop", monkeypatch)
    assert finished and trainer.step == 18 and said == [f"{LINE}: training ends here"] and saved[-1] == 18
    noted = json.loads((tmp_path / "alarm.json").read_text())
    assert (noted["step"], noted["action"], noted["back_to"], noted["gap"]) == (18, "stop", None, 0.5)
    monkeypatch.setattr(loop, "Trainer", None)  # the same command evaluates what there is
    monkeypatch.setattr(loop.finish, "finish", lambda *_: "evaluated")
    assert loop.run(trainer.config, tmp_path, live=False) == "evaluated"


def test_rollback_ends_at_the_last_checkpoint_that_was_sound_and_deletes_none(tmp_path, monkeypatch):
    finished, trainer, said, saved = overfit(tmp_path, "rollback", monkeypatch)
    assert finished and said == [f"{LINE}: training ends at step 12, where it was less"] and saved[-1] == 12
    assert sorted(int(path.name) for path in (tmp_path / "overfitted").iterdir()) == [15]
    assert checkpoint.load(tmp_path, "latest")[3] == checkpoint.load(tmp_path, "best")[3] == 12
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "validation"] == [6, 12, 18]


def test_where_none_was_sound_it_stops(tmp_path, monkeypatch):
    _, _, said, saved = overfit(tmp_path, "rollback", monkeypatch, (0.9,))
    assert said[0].endswith("training ends here") and saved[-1] == 6 and not (tmp_path / "overfitted").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(alarm__action="stop", alarm__examples=8), r"alarm.action = 'stop': must be 'report' with alarm.gap = 0"),
        (dict(alarm__gap=0.2, alarm__examples=0), r"alarm.gap = 0.2: must be 0 with alarm.examples = 0"),
        (
            dict(alarm__gap=0.2, alarm__examples=8, objective__name="standard"),
            r"alarm.gap = 0.2: must be 0 with objective.name = 'stand",
        ),
        (dict(alarm__gap=1.0), r"alarm.gap = 1.0: must be in \[0, 1\)"),
    ],
)
def test_an_alarm_that_cannot_ring_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        experiment.build(tiny_run.config(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_fgsm_at_a_large_epsilon_is_found_out(tmp_path, capsys):
    config = tiny_run.config(
        model__width=64,
        model__depth=2,
        attack__name="fgsm",
        attack__epsilon=0.3,
        attack__step_size=0.3,
        attack__random_start=False,
        attack__warmup_epochs=36.0,
        optimizer__learning_rate=2e-3,
        optimizer__weight_decay=0.0,
        optimizer__schedule="constant",
        training__epochs=40.0,
        training__validate_every_epochs=4.0,
        training__save_every_epochs=4.0,
        training__log_every_steps=100,
        alarm__examples=128,
        alarm__gap=0.3,
        alarm__action="rollback",
    )
    result = loop.run(config, tmp_path, live=False)
    gaps = [row["gap"] for row in rows(tmp_path) if row["kind"] == "validation"]
    assert len(gaps) > 2 and gaps[-1] > 0.3 >= max(gaps[:-1])
    assert "catastrophic overfitting" in capsys.readouterr().out
    back = json.loads((tmp_path / "alarm.json").read_text())["back_to"]
    assert checkpoint.load(tmp_path, "latest")[3] == back and np.isfinite(result["clean"]["accuracy"])
