"""The book of an evaluation: true after any kill, refused for anything else, comparable."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from robust_vit.evaluation import fingerprint
from robust_vit.evaluation.autoattack import ledger
from robust_vit.evaluation.autoattack.ledger import Entry, Ledger

HEADER = {
    "weights": "aaaa",
    "program": "eeee",
    "data": "bbbb",
    "packages": {"jax": "0.10.2"},
    "config": {"epsilon": 0.1, "seed": 0},
    "order": ["apgd-ce", "square"],
}


def outcome(index, status="survived", attack="apgd-ce", item=0, **more):
    return Entry(index, attack, item, 0, -1, status, 7, **more)


def image(value):
    return np.full((2, 3, 1), value, np.float32)


def fill(folder):
    book = Ledger(folder, HEADER)
    book.add(outcome(0))
    book.add(outcome(1, "broken"), image(0.5))
    book.flush()
    book.add(outcome(2, "broken", item=3), image(0.25))
    book.flush()
    return book


def test_what_is_written_comes_back(tmp_path):
    written = fill(tmp_path)
    book = Ledger(tmp_path, HEADER)
    assert book.entries == written.entries and len(book.entries) == 3
    images = book.images()
    np.testing.assert_array_equal(images[1, "apgd-ce", 0], image(0.5))
    np.testing.assert_array_equal(images[2, "apgd-ce", 3], image(0.25))
    assert set(images) == {(1, "apgd-ce", 0), (2, "apgd-ce", 3)}


def test_nothing_is_written_before_flush(tmp_path):
    book = Ledger(tmp_path, HEADER)
    book.add(outcome(0))
    assert book.pending == 1 and ledger.read(tmp_path).entries == []


@examples(30)
@given(st.data())
def test_a_file_cut_anywhere_opens_with_what_was_whole(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    whole = fill(folder).path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    (folder / ledger.NAME).write_bytes(whole[:cut])
    book = Ledger(folder, HEADER)
    lines = whole[:cut].count(b"\n")
    assert len(book.entries) == max(0, lines - 1)
    book.add(outcome(9))
    book.flush()
    again = Ledger(folder, HEADER)
    assert again.entries[-1].index == 9 and len(again.entries) == len(book.entries)
    again.images()  # whatever the book speaks of is there


def test_new_images_never_overwrite_old_ones(tmp_path):
    fill(tmp_path)
    (tmp_path / ledger.NAME).write_text(
        json.dumps({"ledger": ledger.FORMAT, **HEADER}) + "\n"
    )  # the lines are lost, the shards are not
    book = Ledger(tmp_path, HEADER)
    book.add(outcome(5, "broken"), image(0.75))
    book.flush()
    np.testing.assert_array_equal(book.images()[5, "apgd-ce", 0], image(0.75))
    assert len(list(tmp_path.glob("adversarial-*.npz"))) == 3


@pytest.mark.parametrize(
    "change, named",
    [
        ({"weights": "cccc"}, "weights"),
        ({"program": "cccc"}, "program"),
        ({"data": "cccc"}, "data"),
        ({"config": {"epsilon": 0.2, "seed": 0}}, "config.epsilon"),
        ({"packages": {"jax": "0.11"}}, "packages.jax"),
    ],
)
def test_a_ledger_of_something_else_is_refused(tmp_path, change, named):
    fill(tmp_path)
    with pytest.raises(ValueError, match=named) as error:
        Ledger(tmp_path, {**HEADER, **change})
    message = str(error.value)
    assert "\n" not in message and str(tmp_path) in message
    assert all(
        other not in message for other in {"weights", "program", "data", "config.epsilon", "packages.jax"} - {named}
    )


def test_an_older_format_is_refused_and_kept(tmp_path):
    """Format 1 did not hash the program: its verdicts may be those of another model."""
    path = fill(tmp_path).path
    path.write_text(path.read_text().replace(f'"ledger": {ledger.FORMAT}', '"ledger": 1'))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="format 1, must be 2; .* use another workdir") as error:
        Ledger(tmp_path, HEADER)
    assert "\n" not in str(error.value) and path.read_bytes() == before


def test_a_damaged_line_and_a_missing_shard_are_named(tmp_path):
    book = fill(tmp_path)
    ledger.shard_path(tmp_path, 0).unlink()
    with pytest.raises(ValueError, match="adversarial-00000.npz"):
        Ledger(tmp_path, HEADER).images()
    lines = book.path.read_text().splitlines()
    book.path.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        Ledger(tmp_path, HEADER)


@pytest.mark.parametrize(
    "line",
    [
        b"[1, 2]",
        b'"text"',
        b"{}",
        b"\xff\xfe",
        b'{"index": 3}',
        b'{"a": 1}',
        "index = '3'",
        "status = 5",
        "image = [0]",
        "image = [0, -1]",
        "image = 'x'",
        "more = 1",
    ],
)
def test_foreign_lines_are_refused_in_one_line_and_kept(tmp_path, line):
    book = fill(tmp_path)
    if isinstance(line, str):  # an entry with one field changed
        field, _, value = line.partition(" = ")
        line = json.dumps(dataclasses.asdict(outcome(7)) | {field: eval(value)}).encode()
    before = book.path.read_bytes() + line + b"\n"
    book.path.write_bytes(before)
    with pytest.raises(ValueError, match="line 5 is damaged or foreign") as error:
        Ledger(tmp_path, HEADER)
    assert "\n" not in str(error.value) and book.path.read_bytes() == before


@pytest.mark.parametrize("content", [b"[]\n", b"{}\n", b"not json\n", b"\x00\n"])
def test_a_file_that_is_no_ledger_is_refused_and_kept(tmp_path, content):
    (tmp_path / ledger.NAME).write_bytes(content)
    with pytest.raises(ValueError, match="line 1 is damaged or foreign"):
        Ledger(tmp_path, HEADER)
    assert (tmp_path / ledger.NAME).read_bytes() == content


def test_damaged_and_foreign_shards_are_named(tmp_path):
    fill(tmp_path)
    (tmp_path / "adversarial-of-mine.npz").write_bytes(b"")  # somebody else's, and in nobody's way
    path = ledger.shard_path(tmp_path, 0)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    np.savez(tmp_path / "other.npz", images=np.zeros((1, 2), np.int32))
    np.savez(tmp_path / "none.npz", other=np.zeros(3))
    np.savez(tmp_path / "empty.npz", images=np.zeros((0, 2, 3, 1), np.float32))
    foreign = [(tmp_path / f"{name}.npz").read_bytes() for name in ("other", "none", "empty")]
    for content in (b"", b"text", whole[: len(whole) // 2], bytes(flipped), *foreign):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="adversarial-00000.npz") as error:
            Ledger(tmp_path, HEADER).images()
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    assert len(Ledger(tmp_path, HEADER).images()) == 2


def test_comparison_names_points_and_attacks(tmp_path):
    fill(tmp_path / "a")
    book = Ledger(tmp_path / "b", {**HEADER, "weights": "dddd"})
    for each in (outcome(0, "broken", "square"), outcome(1, "broken"), outcome(2, "broken", "square")):
        book.add(each, image(0.1))
    book.flush()
    text = "\n".join(ledger.compare(tmp_path / "a", tmp_path / "b"))
    assert "weights differ" in text
    assert "point 0: survived | broken by square" in text
    assert "point 1" not in text
    assert "point 2: broken by apgd-ce (restart 0) | broken by square (restart 0)" in text
    assert "3 points judged in both; 1 with another verdict, 1 with the same by another attack" in text


def test_the_earliest_attack_and_the_lowest_item_decide():
    outcomes = [
        outcome(0, "broken", "square"),
        outcome(0, "broken", item=2),
        outcome(0, "broken", item=1),
        outcome(1, "misclassified", ledger.CLEAN),
        outcome(2),
    ]
    decided = ledger.verdicts(outcomes, HEADER["order"])
    assert decided[0] == outcomes[2] and decided[1] == outcomes[3] and decided[2] is None


def test_the_command(tmp_path):
    fill(tmp_path)
    command = [sys.executable, "-m", "robust_vit.evaluation.autoattack.ledger", str(tmp_path)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and "3 points judged in both; 0 with another verdict" in done.stdout, done.stderr
    assert subprocess.run(command, capture_output=True, text=True).returncode != 0


def test_the_hash_of_data_ignores_order_and_nothing_else():
    rng = np.random.default_rng(0)
    images, labels, indices = rng.uniform(size=(5, 2, 2, 1)).astype(np.float32), np.arange(5), np.arange(5)
    here, order = fingerprint.data(images, labels, indices), rng.permutation(5)
    assert here == fingerprint.data(images[order], labels[order], indices[order])
    assert here != fingerprint.data(images[order], labels[order], indices)
    assert here != fingerprint.data(images, labels[::-1], indices)
    assert here != fingerprint.data(images + 1e-6, labels, indices)
    assert here != fingerprint.data((images * 255).astype(np.uint8), labels, indices)


def test_outcomes_are_plain_values():
    assert dataclasses.asdict(outcome(3))["image"] is None
