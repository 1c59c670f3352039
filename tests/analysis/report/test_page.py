"""The page of a run says what its files say, escapes all of it, needs no network, and never costs a result."""

import base64
import html.parser
import io
import json
import re

import jax
import numpy as np
import pytest
from made import CLASSES, EVIL, EXAMPLES, MASKING, NAMES, SWEEP, entry, folder, result, walk
from PIL import Image

from robust_vit import models
from robust_vit.analysis import attention
from robust_vit.analysis.report import content, explanations, page
from robust_vit.evaluation import pairs, record
from robust_vit.evaluation.suites.context import Context

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(html.parser.HTMLParser):
    """Elements with attributes, the text of each, and whether tags are closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(data for tag, data in self.texts if tag not in ("script", "style")).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = folder(tmp_path_factory.mktemp("runs") / f"run {EVIL[1:5]}", masking=MASKING, sweep=SWEEP)
    return page.write(path), path


@pytest.fixture(scope="module")
def read(written):
    return Reader(written[0].read_text())


def embedded(text):
    (found,) = re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)
    return json.loads(found)


def test_the_claim_its_interval_and_what_was_seen_are_told(read):
    low, high = entry(5)["interval"]
    assert f"{500 / 12:.2f} %" in read.text and f"{100 * low:.1f} – {100 * high:.1f} %" in read.text
    assert "no pixel value moves by more than 0.1 of its range" in read.text
    assert f"{1100 / 12:.2f} %" in read.text
    assert "PGD alone flatters a model" in read.text and "1 question has a bad answer" in read.text
    assert "An attack no better than noise has found no direction" in read.text
    assert f"train {EVIL}" in read.text, "the command of training"


def test_markup_in_names_files_and_configuration_is_text(written, read):
    assert EVIL in read.text and NAMES[2] in read.text
    assert all("onerror" not in a and "x" != a.get("src") for _, a in read.elements)
    assert len(read.of("script")) == 2 and "alert(" not in "".join(t for tag, t in read.texts if tag == "style")
    source = written[0].read_text()
    assert "</script><script>alert" not in source and EVIL not in source
    assert embedded(source)["classes"] == NAMES


def test_nothing_is_fetched(read):
    for tag, attributes in read.elements:
        for name in ("src", "href", "action", "data", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
    style = "".join(text for tag, text in read.texts if tag == "style")
    assert "url(" not in style and "@import" not in style
    (policy,) = [a["content"] for a in read.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_ids_are_unique_links_arrive_and_pictures_have_words(read):
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [a["href"][1:] for a in read.of("a")]
    assert links and set(links) <= set(ids)
    assert all(a.get("alt") for a in read.of("img"))
    assert all(a.get("role") == "img" for a in read.of("canvas"))
    assert [a["lang"] for a in read.of("html")] == ["en"]
    assert any("width=device-width" in a.get("content", "") for a in read.of("meta"))


def test_pictures_are_of_the_figures_that_stand_beside_them(written, tmp_path):
    """A sweep that was measured again is drawn again; pictures of other weights' examples are left out."""
    import shutil

    path = shutil.copytree(written[1], tmp_path / "run")
    before = (path / "report" / "sweep.png").read_bytes()
    for name in ("steps", "curves"):
        Image.new("RGB", (4, 4)).save(path / "report" / f"{name}.png")
    words = [a["alt"] for a in Reader(page.write(path).read_text()).of("img")]
    assert words[0] == "Accuracy against epsilon: 90.0% at 0, 50.0% at 0.1, 0.0% at 0.4." and len(words) == 2
    assert (path / "report" / "sweep.png").read_bytes() == before
    curve = [row | {"accuracy": row["accuracy"] / 2} for row in SWEEP["curve"]]
    record.write(path / "result.json", result(sweep=SWEEP | {"curve": curve}, weights={"hash": "another"}))
    words = [a["alt"] for a in Reader(page.write(path).read_text()).of("img")]
    assert words == ["Accuracy against epsilon: 45.0% at 0, 25.0% at 0.1, 0.0% at 0.4."]
    assert (path / "report" / "sweep.png").read_bytes() != before


def test_the_browser_is_given_what_was_measured(written):
    data, walked = embedded(written[0].read_text()), walk()
    assert [e["i"] for e in data["examples"]] == walked.indices.tolist()
    states = ["wrong", *("flipped" if n % 2 else "survived" for n in range(1, EXAMPLES))]
    assert [e["s"] for e in data["examples"]] == states
    for n, e in enumerate(data["examples"]):
        clean = np.asarray(Image.open(io.BytesIO(base64.b64decode(e["x"]))))
        change = np.asarray(Image.open(io.BytesIO(base64.b64decode(e["d"]))), np.float64)
        np.testing.assert_array_equal(clean, np.rint(255 * walked.images[n, ..., 0]))
        back = clean / 255 + e["l"] * (change - 128) / 127
        np.testing.assert_allclose(back, walked.adversarial[n, ..., 0], atol=0.5 / 255 + 0.51 * 0.1 / 127 + 1e-4)
        z = np.asarray(walked.adversarial_logits[n], np.float64)
        assert e["c"][1] == pytest.approx(np.exp(z).max() / np.exp(z).sum(), rel=1e-3) and e["p"][1] == z.argmax()
        assert e["m"][1] == pytest.approx(z[e["y"]] - np.delete(z, e["y"]).max(), rel=1e-3)
        assert [row[0] for row in e["z"]] == list(range(CLASSES))
    assert data["examples"][1]["t"] == "PGD-3: flipped at step 2 of 3."
    assert data["examples"][2]["t"].startswith("PGD-3: stood all 3 steps")
    assert data["examples"][0]["t"] == f"Misclassified without any attack: taken for “{NAMES[1]}”."


def test_classes_are_counted_by_the_outcomes_of_each_suite(written):
    walked = walk()
    labels = dict(zip(walked.indices.tolist(), walked.labels.tolist()))
    table = content.per_class(record.read(written[1] / "result.json"), labels)
    assert table["suites"] == ["no attack", "PGD"] and [row["name"] for row in table["rows"]] == NAMES
    for k, row in enumerate(table["rows"]):
        here = walked.labels == k
        told = [cell["accuracy"] for cell in row["cells"]]
        assert told == [walked.clean_right[here].mean(), walked.standing[here].mean()] and row["examples"] == 3
    assert content.per_class(record.read(written[1] / "result.json")) is None, "whose labels nobody knows"


@pytest.mark.parametrize(
    ("suites", "chosen"),
    [
        ({}, "pgd"),
        ({"autoattack": entry(6, version="standard")}, "autoattack"),
        ({"autoattack": entry(6), "autoattack:straight_through": entry(2)}, "autoattack:straight_through"),
        ({"pgd:straight_through": entry(9)}, "pgd"),
        ({"quick": entry(1)}, "pgd"),
    ],
)
def test_the_claim_rests_on_the_strongest_attack(suites, chosen):
    assert content.strongest(result(**suites)) == chosen


def test_a_weaker_attack_that_found_more_is_told():
    threat = {"norm": "linf", "epsilon": 0.1}
    made = result(autoattack=entry(6, version="standard", **threat), masking=MASKING | {"warnings": []})
    told = [caution["text"] for caution in content.claim(made, "runs/x")["cautions"]]
    assert told == ["PGD found fewer that stand: 41.67 %."]
    clean = {"schema": 2, "clean": entry(3)}
    assert content.claim(clean, "runs/x")["figure"] is None
    assert "Nothing was attacked" in content.claim(clean, "runs/x")["cautions"][0]["text"]


def test_every_finding_that_the_masking_report_makes_is_explained():
    from robust_vit.evaluation.masking import checks, failures, findings
    from robust_vit.evaluation.masking.program import lint

    sources = "".join(open(module.__file__).read() for module in (checks, failures, findings))
    made = set(re.findall(r'(?:finding|skipped|Finding|weaker_attack_wins)\(\s*"([a-z_]+)"', sources))
    made |= set(re.findall(r'name = "([a-z_]+)"', sources)) | set(lint.ADVICE)
    made |= {"cross_entropy_against_dlr", "cross_entropy_against_margin"}
    assert len(made) > 35 and made == set(explanations.EXPLANATIONS)
    for name, told in explanations.EXPLANATIONS.items():
        assert told.question.endswith("?") and len(told.why) > 30 and told.remedy, name
    assert explanations.of("of_tomorrow").question == "of tomorrow"


def test_a_folder_without_a_result_says_which_command_makes_it(tmp_path):
    with pytest.raises(ValueError, match=r"robust-vit evaluate --workdir=\S+ makes its result"):
        page.write(tmp_path)


def test_what_goes_wrong_is_a_line_and_the_result_stays(tmp_path):
    path, said = folder(tmp_path / "run"), []
    before = (path / "result.json").read_bytes()
    (path / "report" / "examples.npz").write_bytes(b"torn")
    page.attempt(path, say=said.append)
    assert len(said) == 1 and "\n" not in said[0] and said[0].startswith("report: not written")
    assert (path / "result.json").read_bytes() == before and not (path / "report" / "index.html").exists()
    page.attempt(path, examples=0, say=said.append)
    assert said[1] == f"report: {path / 'report' / 'index.html'}"


def test_examples_of_other_weights_are_not_shown(tmp_path):
    path = folder(tmp_path / "run", weights={"hash": "another"})
    text = page.write(path).read_text()
    assert '<script type="application/json">' not in text and page.UNTOLD in text


@jax.jit
def plainly(logits_fn, images):
    return logits_fn(images)


@pytest.fixture(scope="module")
def context():
    module = models.build("vit", depth=1, width=16, heads=2, patch_size=4, image_size=8, channels=1, num_classes=4)
    logits_fn = models.logits_fn(module, models.init(module, jax.random.key(0)))
    images = np.asarray(jax.random.uniform(jax.random.key(1), (6, 8, 8, 1)))
    labels = np.asarray(plainly(logits_fn, images)).argmax(1)
    return Context(
        logits_fn=logits_fn,
        batches=lambda: [{"image": images, "label": labels, "index": np.arange(6) + 4}],
        norm="linf",
        epsilon=0.05,
        steps=2,
    )


def test_examples_are_attacked_once_and_again_for_another_attack(tmp_path, context, monkeypatch):
    import dataclasses

    from robust_vit.analysis.report import gallery

    path, drawn = folder(tmp_path / "run", with_walk=False, weights={"hash": context.fingerprint}), []
    monkeypatch.setattr(gallery.charts, "write", lambda *arguments: drawn.append(1))
    for _ in range(2):
        data = embedded(page.write(path, context, examples=4).read_text())
        assert [e["i"] for e in data["examples"]] == [4, 5, 6, 7] and len(drawn) == 1
    assert embedded(page.write(path).read_text()) == data, "what is in the folder is shown without attacking"
    page.write(path, dataclasses.replace(context, epsilon=0.06), examples=4)
    assert len(drawn) == 2
    (path / "report" / "examples.npz").write_bytes(b"torn")
    assert len(embedded(page.write(path, context, examples=4).read_text())["examples"]) == 4 and len(drawn) == 3


def test_the_image_by_which_autoattack_broke_a_point_is_shown(tmp_path, context, monkeypatch):
    from robust_vit.analysis.report import gallery
    from robust_vit.evaluation.autoattack import ledger

    monkeypatch.setattr(gallery.charts, "write", lambda *arguments: None)
    book = tmp_path / "autoattack" / "abc-linf-0.05" / "standard-6"
    written = ledger.Ledger(book, {"weights": "w", "program": "p", "config": {}, "data": "d", "packages": {}})
    worst = np.full((8, 8, 1), 0.25, np.float32)
    written.add(ledger.Entry(4, "clean", 0, 0, -1, "survived", 0))
    written.add(ledger.Entry(5, "clean", 0, 0, -1, "survived", 0))
    written.add(ledger.Entry(4, "apgd-ce", 0, 0, -1, "survived", 100))
    written.add(ledger.Entry(4, "apgd-t", 2, 0, 3, "broken", 27), worst)
    written.add(ledger.Entry(5, "apgd-ce", 0, 0, -1, "survived", 100))
    written.add(ledger.Entry(5, "square", 0, 0, -1, "survived", 5000))
    written.flush()
    moved = str(book).replace(str(tmp_path), "/where/it/once/was")
    made = entry(
        5, 6, version="standard", norm="linf", epsilon=0.05, ledger=moved, outcomes=pairs.pack(np.arange(2), [1, 0])
    )
    folder(tmp_path, with_walk=False, weights={"hash": context.fingerprint}, autoattack=made)
    page.write(tmp_path, context, examples=4)
    found = gallery.read(tmp_path / "report", context.fingerprint).walk
    np.testing.assert_array_equal(found.adversarial[0], worst)
    expected = plainly(context.logits_fn, np.repeat(worst[None], 6, axis=0))[0]
    np.testing.assert_allclose(found.adversarial_logits[0], expected, atol=1e-5)
    data = embedded((tmp_path / "report" / "index.html").read_text())
    names = content.class_names(result(), 4)
    assert data["examples"][0]["t"].startswith(
        f"AutoAttack: stood APGD-CE; broken by APGD-T, aimed at “{names[3]}”, after 27 steps. PGD-2: "
    )
    assert data["examples"][1]["t"].startswith("AutoAttack: stood APGD-CE and Square. PGD-2: ")
    maps = [attention.attention_rollout(context.logits_fn, x)[0] for x in (found.images, found.adversarial)]
    assert data["grid"] == [2, 2]
    for told, expected in zip(data["examples"][0]["a"], maps):
        levels = np.frombuffer(base64.b64decode(told), np.uint8).reshape(2, 2)
        np.testing.assert_array_equal(levels, np.rint(255 * expected / expected.max()))


def test_the_templates_travel_in_the_wheel():
    import pathlib

    root = pathlib.Path(page.__file__).parents[3]
    setup = root / "setup.py"
    if not setup.is_file():
        pytest.skip("an installed package: it has travelled")
    (patterns,) = re.findall(r'"robust_vit": \[(.*?)\]', setup.read_text())
    package = root / "robust_vit"
    packed = {path for pattern in re.findall(r'"(.*?)"', patterns) for path in package.glob(pattern)}
    assert packed >= set((package / "analysis" / "report" / "templates").iterdir())
