"""The script of the page: its functions by node, and the page in a browser; each is left out where there is none."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest
from made import WEIGHTS, folder, walk

from robust_vit.analysis.report import page

SCRIPT = pathlib.Path(page.__file__).parent / "templates" / "browser.js"
NODE = shutil.which("node")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed: the script's functions are not run")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed (apt-get install chromium): the page is not opened"
)


def by_node(expression, **values):
    """The value of an expression of the script's functions, in one process."""
    program = (
        f"const s = require({json.dumps(str(SCRIPT))}); const v = {json.dumps(values)};"
        f"console.log(JSON.stringify({expression}))"
    )
    told = subprocess.run([NODE, "-e", program], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(told.stdout)


@needs_node
def test_the_functions_of_the_script():
    examples = [
        {"i": 9, "s": "flipped", "y": 0, "m": [2.0, -1.0]},
        {"i": 3, "s": "survived", "y": 1, "m": [1.0, 0.5]},
        {"i": 5, "s": "survived", "y": 0, "m": [3.0, None]},
        {"i": 1, "s": "wrong", "y": 1, "m": [-2.0, -2.0]},
    ]
    filters = [
        ("all", "all", "closest", [3, 0, 1, 2]),
        ("all", "all", "furthest", [1, 0, 3, 2]),  # a margin that is no number is last either way
        ("all", "all", "index", [3, 1, 2, 0]),
        ("all", "0", "clean", [0, 2]),
        ("survived", "all", "clean", [1, 2]),
        ("flipped", "1", "index", []),
    ]
    asked = [{"state": state, "label": label, "sort": sort} for state, label, sort, _ in filters]
    keys = [("ArrowRight", 0, 5), ("ArrowLeft", 0, 5), ("ArrowDown", 1, 5), ("End", 0, 5), ("Home", 4, 5), ("x", 1, 5)]
    found = by_node(
        "{chosen: v.asked.map((f) => s.chosen(v.examples, f)),"
        " moved: v.keys.map((k) => s.moved(k[0], k[1], k[2], 3)), none: s.moved('End', 0, 0, 3),"
        " added: [...s.added([100, 0, 250, 255], [255, 1, 255, 255], 0.1)],"
        " grey: [...s.signed([128, 128, 128, 255, 255, 255, 255, 255, 1, 1, 1, 255], true)],"
        " colour: [...s.signed([10, 128, 200, 255], false)],"
        " widths: s.widths([[0, 1, 2], [1, -1, null]]),"
        " ordered: [s.ordered(v.rows, 1, false), s.ordered(v.rows, 1, true), s.ordered(v.rows, 0, false)]}",
        examples=examples,
        asked=asked,
        keys=keys,
        rows=[["b", "10"], ["a", "9"], ["c", ""]],
    )
    assert found["chosen"] == [expected for *_, expected in filters]
    assert found["moved"] == [1, 0, 4, 4, 0, None] and found["none"] is None
    assert found["added"] == [126, 0, 255, 255], "100 + 255 * 0.1, 0 - 25.5 and 250 + 25.5 cut off"
    assert found["grey"] == [255, 255, 255, 255, 178, 24, 43, 255, 33, 102, 172, 255]
    assert found["colour"] == [10, 128, 200, 255] and found["widths"] == [[67, 100], [0, 0]]
    assert found["ordered"] == [[1, 0, 2], [0, 1, 2], [1, 0, 2]], "by number; empty cells last either way"


PROBE = """
<script>
const told = { errors: [] };
addEventListener("error", (e) => told.errors.push(String(e.message)));
addEventListener("securitypolicyviolation", (e) => told.errors.push(e.violatedDirective));
addEventListener("load", async () => {
  const root = document.querySelector("[data-browser]"), find = (name) => root.querySelector(`[data-${name}]`);
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  while (!root.hasAttribute("data-ready")) await wait(10);
  told.ready = performance.now();
  told.all = find("status").textContent;
  const set = (name, value) => { find(name).value = value; find(name).dispatchEvent(new Event("change")); };
  set("state", "flipped"); told.flipped = find("status").textContent;
  set("label", "1"); told.label = find("status").textContent;
  set("state", "all"); set("label", "all"); set("sort", "index");
  await wait(300);
  told.first = find("title").textContent;
  find("list").children[0].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  await wait(300);
  told.second = find("title").textContent; told.story = find("story").textContent;
  told.selected = find("list").querySelectorAll("[aria-selected='true']").length;
  const canvas = find("adversarial"), size = [canvas.width, canvas.height];
  told.size = size;
  told.pixels = [...canvas.getContext("2d").getImageData(0, 0, ...size).data].filter((_, k) => k % 4 === 0);
  told.alert = window.alerted === true;
  told.wide = document.documentElement.scrollWidth - innerWidth;
  document.documentElement.textContent = "TOLD" + JSON.stringify(told) + "END";
});
window.alert = () => { window.alerted = true; };
</script>
"""


def opened(tmp_path, path, width=1000):
    """What the probe tells of a page, opened from disk in a browser that finds no network."""
    text = path.read_text().replace("<style>", PROBE + "<style>", 1)
    probed = tmp_path / "probed.html"
    probed.write_text(text)
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", f"--window-size={width},900"]
    command += [
        f"--user-data-dir={tmp_path / 'chromium'}",
        "--virtual-time-budget=20000",
        "--host-rules=MAP * ~NOTFOUND",
    ]
    told = subprocess.run([*command, probed.as_uri()], capture_output=True, text=True, timeout=120)
    (found,) = re.findall(r"TOLD(\{.*\})END", told.stdout, re.S)
    return json.loads(found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@needs_chromium
@pytest.mark.slow
def test_the_page_works_in_a_browser(tmp_path):
    import numpy as np

    path, walked = page.write(folder(tmp_path / "run")), walk()
    told = opened(tmp_path, path)
    assert told["errors"] == [] and not told["alert"]
    assert told["all"] == "12 of 12 examples"
    assert told["flipped"] == "6 of 12 examples" and told["label"] == "3 of 12 examples"
    assert told["first"] == "Example 100, a cat" and told["second"].startswith("Example 101, a <img src=x")
    assert told["story"] == "PGD-3: flipped at step 2 of 3." and told["selected"] == 1 and told["size"] == [8, 8]
    np.testing.assert_allclose(told["pixels"], 255 * walked.adversarial[1].ravel(), atol=1.1)


@needs_chromium
@pytest.mark.slow
def test_on_a_phone_nothing_sticks_out(tmp_path):
    told = opened(tmp_path, page.write(folder(tmp_path / "run")), width=500)
    assert told["errors"] == [] and told["wide"] <= 0


OPENED = """<script>addEventListener("load", () => {
  document.body.dataset.opened = performance.now();
  document.body.dataset.listed = document.querySelectorAll("[data-list] button").length;
});</script>"""


@needs_chromium
@pytest.mark.slow
def test_a_thousand_colour_examples_open_within_two_seconds_and_ten_megabytes(tmp_path):
    """The best of three, in real time: a busy machine is no fault of the page."""
    path = folder(tmp_path / "run", with_walk=False)
    (path / "report").mkdir()
    walk(size=64, channels=3, examples=1000).save(path / "report" / "examples.npz", classifier=WEIGHTS, split="x")
    made = page.write(path)
    assert made.stat().st_size < 10_000_000
    made.write_text(made.read_text().replace("<style>", OPENED + "<style>", 1))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    seconds = []
    for n in range(3):
        profile = f"--user-data-dir={tmp_path / f'chromium{n}'}"
        told = subprocess.run([*command, profile, made.as_uri()], capture_output=True, text=True, timeout=120).stdout
        assert 'data-listed="1000"' in told
        seconds.append(float(re.search(r'data-opened="([\d.]+)"', told)[1]) / 1000)
    assert min(seconds) < 2.0, seconds
