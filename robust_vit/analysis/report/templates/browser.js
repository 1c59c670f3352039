"use strict";
// The example browser: pure functions first, which the tests call, then what touches the page. Texts of the run are only
// ever written as text.

/** The examples that a filter leaves, in the order asked for: [positions]. */
function chosen(examples, filter) {
  const kept = [];
  examples.forEach((e, n) => {
    const state = filter.state === "all" || e.s === filter.state;
    const label = filter.label === "all" || String(e.y) === filter.label;
    if (state && label) kept.push(n);
  });
  const last = (value, sign) => (value === null ? Infinity : sign * value);
  const keys = {
    index: (n) => examples[n].i,
    closest: (n) => last(examples[n].m[1], 1),
    furthest: (n) => last(examples[n].m[1], -1),
    clean: (n) => last(examples[n].m[0], 1),
  };
  const key = keys[filter.sort];
  return kept.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : examples[a].i - examples[b].i));
}

/** Where a key moves to in a list of so many: a position, or null for other keys. */
function moved(key, position, count, columns) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -count, End: count };
  if (!(key in steps) || !count) return null;
  return Math.min(count - 1, Math.max(0, position + steps[key]));
}

/** Pixels of the adversarial image from those of the clean one and of the change, RGBA bytes. */
function added(clean, change, limit) {
  const out = new Uint8ClampedArray(clean.length);
  for (let k = 0; k < clean.length; k++) {
    out[k] = k % 4 === 3 ? 255 : Math.round(clean[k] + (255 * limit * (change[k] - 128)) / 127);
  }
  return out;
}

/** A grey change as blue (darker) to red (brighter) around white; a coloured one stays as it is, around grey. */
function signed(change, grey) {
  const out = new Uint8ClampedArray(change.length);
  for (let k = 0; k < change.length; k += 4) {
    const v = Math.max(-1, (change[k] - 128) / 127);
    const towards = v < 0 ? [33, 102, 172] : [178, 24, 43];
    for (let c = 0; c < 3; c++) {
      out[k + c] = grey ? Math.round(255 + Math.abs(v) * (towards[c] - 255)) : change[k + c];
    }
    out[k + 3] = 255;
  }
  return out;
}

/** Widths in percent of a table of logits, over their common range. */
function widths(rows) {
  const all = rows.flatMap((row) => [row[1], row[2]]).filter((v) => v !== null);
  const low = Math.min(...all), range = Math.max(...all) - low || 1;
  return rows.map((row) => [row[1], row[2]].map((v) => (v === null ? 0 : Math.round((100 * (v - low)) / range))));
}

/** What is seen, for those who hear it. */
function described(e, classes) {
  return { clean: "clean image of " + classes[e.y] + ", taken for " + classes[e.p[0]],
           adversarial: "adversarial image, taken for " + classes[e.p[1]],
           change: "what the attack adds, at most " + e.l + " a pixel value" };
}

/** Rows of a table in another order: numbers by value, texts by letter, empty cells last. */
function ordered(rows, column, descending) {
  const value = (row) => row[column];
  const missing = (v) => v === "" || v === null || v === undefined;
  const compare = (a, b) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    const both = Number(a) - Number(b);
    const found = Number.isNaN(both) ? String(a).localeCompare(String(b)) : both;
    return descending ? -found : found;
  };
  return rows.map((row, n) => [row, n]).sort((a, b) => compare(value(a[0]), value(b[0])) || a[1] - b[1]).map((p) => p[1]);
}

function element(name, attributes, text) {
  const made = document.createElement(name);
  Object.entries(attributes || {}).forEach(([key, value]) => made.setAttribute(key, value));
  if (text !== undefined) made.textContent = text;
  return made;
}

function loaded(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = source;
  });
}

function pixelsOf(image, width, height) {
  const canvas = element("canvas", { width: width, height: height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

function drawn(canvas, bytes, width, height, words) {
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(new ImageData(bytes, width, height), 0, 0);
  canvas.setAttribute("aria-label", words);
}

function heat(canvas, text, grid, words) {
  const levels = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const bytes = new Uint8ClampedArray(4 * levels.length);
  levels.forEach((level, k) => bytes.set([level, Math.round(0.75 * level), Math.round(60 + 0.2 * level), 255], 4 * k));
  drawn(canvas, bytes, grid[1], grid[0], words);
}

function browser(root, data) {
  const find = (name) => root.querySelector("[data-" + name + "]");
  const list = find("list"), status = find("status"), filter = {};
  const source = (text) => "data:image/" + data.kind + ";base64," + text;
  let shown = [], position = 0, asked = 0;

  data.classes.forEach((name, k) => find("label").append(element("option", { value: k }, name)));

  async function show() {
    const e = data.examples[shown[position]], turn = ++asked;
    find("shown").hidden = !e;
    if (!e) return;
    const words = described(e, data.classes);
    find("title").textContent = "Example " + e.i + ", a " + data.classes[e.y];
    find("story").textContent = e.t;
    find("clean-words").textContent = "clean: " + data.classes[e.p[0]] + " " + Math.round(100 * e.c[0]) + " %";
    find("change-words").textContent = "change, at most " + e.l;
    find("adversarial-words").textContent = "adversarial: " + data.classes[e.p[1]] + " " + Math.round(100 * e.c[1]) + " %";
    find("margins").textContent = "Margin of the true class: " + e.m[0] + " clean, " + e.m[1] + " under attack.";
    const bars = widths(e.z), rows = e.z.map((row, n) => {
      const line = element("tr", row[0] === e.y ? { class: "label" } : {});
      const bar = element("td", { class: "bar", "aria-hidden": "true" });
      bars[n].forEach((width) => bar.append(element("i", { style: "width:" + width + "%" })));
      line.append(element("td", {}, data.classes[row[0]]), element("td", { class: "n" }, row[1]),
                  element("td", { class: "n" }, row[2]), bar);
      return line;
    });
    find("logits").replaceChildren(...rows);
    find("attention").hidden = !e.a;
    if (e.a) {
      heat(find("attention-clean"), e.a[0], data.grid, "where the model attends on the clean image");
      heat(find("attention-adversarial"), e.a[1], data.grid, "where the model attends on the adversarial image");
    }
    const [image, change] = await Promise.all([loaded(source(e.x)), loaded(source(e.d))]);
    if (turn !== asked) return; // another one was asked for meanwhile
    const w = image.naturalWidth, h = image.naturalHeight;
    const clean = pixelsOf(image, w, h), delta = pixelsOf(change, w, h);
    drawn(find("clean"), new Uint8ClampedArray(clean), w, h, words.clean);
    drawn(find("change"), signed(delta, data.grey), w, h, words.change);
    drawn(find("adversarial"), added(clean, delta, e.l), w, h, words.adversarial);
  }

  function select(next, focus) {
    const buttons = list.children;
    if (buttons[position]) buttons[position].setAttribute("aria-selected", "false"), (buttons[position].tabIndex = -1);
    position = next;
    if (buttons[position]) {
      buttons[position].setAttribute("aria-selected", "true");
      buttons[position].tabIndex = 0;
      if (focus) buttons[position].focus();
    }
    return show();
  }

  function refresh() {
    ["state", "label", "sort"].forEach((name) => (filter[name] = find(name).value));
    shown = chosen(data.examples, filter);
    const buttons = shown.map((n) => {
      const e = data.examples[n];
      const words = "example " + e.i + ", " + data.classes[e.y] + ", " + (e.s === "wrong" ? "misclassified" : e.s);
      const button = element("button", { type: "button", role: "option", class: e.s, tabindex: -1, "aria-selected": false,
                                         "aria-label": words, title: words });
      button.append(element("img", { src: source(e.x), alt: "", loading: "lazy" }));
      return button;
    });
    list.replaceChildren(...buttons);
    status.textContent = shown.length + " of " + data.examples.length + " examples";
    return select(0, false);
  }

  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) select([...list.children].indexOf(button), true);
  });
  list.addEventListener("keydown", (event) => {
    const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
    const next = moved(event.key, position, shown.length, columns);
    if (next === null) return;
    event.preventDefault();
    select(next, true);
  });
  ["state", "label", "sort"].forEach((name) => find(name).addEventListener("change", refresh));
  return refresh();
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...body.rows];
      const values = rows.map((row) => [...row.cells].map((cell) => cell.dataset.value ?? cell.textContent.trim()));
      body.append(...ordered(values, column, descending).map((n) => rows[n]));
    });
  });
}

if (typeof document !== "undefined") {
  document.querySelectorAll("[data-browser]").forEach((root) => {
    const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    browser(root, data).then(() => root.setAttribute("data-ready", ""));
  });
  document.querySelectorAll("table[data-sortable]").forEach(sortable);
  document.querySelectorAll("a[href^='#']").forEach((link) => link.addEventListener("click", () => {
    const details = document.getElementById(link.getAttribute("href").slice(1))?.closest("details");
    if (details) details.open = true; // what is folded away has no place to jump to
  }));
}
if (typeof module !== "undefined") module.exports = { chosen, moved, added, signed, widths, described, ordered };
