"""The suites "quick" and "autoattack" on a run folder."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.evaluation import suites


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


def test_both_suites_leave_entries_ledgers_and_a_gap(tmp_path):
    rng = np.random.default_rng(0)
    logits_fn = jax.tree_util.Partial(linear, jnp.asarray(rng.normal(size=(12, 4)), jnp.float32))
    images = rng.uniform(size=(10, 2, 2, 3)).astype(np.float32)
    labels = np.asarray(logits_fn(images).argmax(-1))
    batch = {"image": images, "label": labels, "index": np.arange(10) + 7, "mask": np.arange(10) < 9}
    said = []
    context = suites.Context(
        logits_fn,
        lambda: [batch],
        "linf",
        0.05,
        workdir=tmp_path,
        options=suites.read_options(
            ["autoattack_version=apgd-ce+square", "autoattack_budget=0.02", "autoattack_tile=8"]
        ),
        say=said.append,
    )
    entries = suites.run_suites("quick,autoattack", context)
    for name, version in (("quick", "quick"), ("autoattack", ["apgd-ce", "square"])):
        entry = json.loads(json.dumps(entries[name]))
        assert entry["examples"] == 9 and entry["version"] == version and "points" not in entry
        assert entry["accuracy"] == entry["robust_accuracy"] and entry["epsilon"] == 0.05
        assert entry["interval"][0] <= entry["accuracy"] <= entry["interval"][1]
        stored = json.loads((tmp_path / entry["ledger"] / "result.json").read_text())
        assert [point["index"] for point in stored["points"]] == list(range(7, 16))
    assert any(line.startswith("gap: quick") for line in said)
    assert entries["autoattack"]["accuracy"] <= entries["autoattack"]["clean_accuracy"]
