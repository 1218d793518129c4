// The bar above the board, which is its legend as well: the brush in hand with its alpha or seed; and, in the board's
// corner, the layers that rows act on. Both stay as they are while the page is open, whatever is drawn meanwhile.

const BRUSHES = [
  { id: "toggle", label: "toggle", title: "Toggle between A and B" },
  { id: "A", label: "A", title: "Give back to A" },
  { id: "B", label: "B", title: "Take from B" },
  { id: "blend", label: "blend", title: "Blend: (1 − α) A + α B; α outside 0 to 1 extrapolates" },
  { id: "zero", label: "zero", title: "Set to zero" },
  { id: "reinit", label: "reinit", title: "Draw anew at random: normal with deviation 0.02, by a seed" },
  { id: "invert", label: "invert", title: "Swap A and B: a blend of α becomes one of 1 − α, damage stays" },
];
const MOST_ALPHA = 100;
const MOST_SEED = 999999999;
const chosen = { brush: "toggle", alpha: 0.5, seed: 1, ranges: null, layers: 0 }; // ranges null: all layers

function brushSource() {
  // the source that the brush lays; "toggle" and "invert" look at what is there
  return { blend: blendOf(chosen.alpha), reinit: `reinit:${chosen.seed}` }[chosen.brush] ?? chosen.brush;
}

function brushWords() {
  return {
    toggle: "toggle between A and B",
    A: "give back to A",
    B: "take from B",
    blend: `blend, ${short(chosen.alpha)} of B`,
    zero: "set to zero",
    reinit: `draw anew at random, seed ${chosen.seed}`,
    invert: "swap A and B",
  }[chosen.brush];
}

function actsOn(layer) {
  return chosen.ranges === null || chosen.ranges.some(([low, high]) => low <= layer && layer <= high);
}

function rangeWords() {
  return chosen.ranges === null ? "" : ` in layers ${layersText(chosen.ranges)}`;
}

class Bar {
  constructor(element, changed) {
    this.changed = changed;
    this.brushes = make("span", "brushes");
    this.brushes.setAttribute("role", "radiogroup");
    this.brushes.setAttribute("aria-label", "Brush: what a click or a drag on the board does");
    this.buttons = BRUSHES.map((brush, i) => this.button(brush, i));
    this.brushes.append(...this.buttons);
    this.value = make("label", "value");
    this.symbol = make("span");
    this.field = make("input");
    this.field.type = "number";
    this.field.oninput = () => this.read();
    this.field.onblur = () => this.show();
    this.value.append(this.symbol, this.field);
    element.replaceChildren(this.brushes, this.value);
    this.show();
  }

  button({ id, label, title }, i) {
    const button = make("button", "brush");
    button.type = "button";
    button.dataset.brush = id;
    button.title = `${title} (key ${i + 1})`;
    button.setAttribute("role", "radio");
    if (id !== "toggle" && id !== "invert") button.append(swatch(id, 0.5));
    button.append(label, make("kbd", "", String(i + 1)));
    button.onclick = () => this.choose(id);
    button.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = (i + step + BRUSHES.length) % BRUSHES.length;
      this.choose(BRUSHES[next].id);
      this.buttons[next].focus();
    };
    return button;
  }

  choose(id) {
    chosen.brush = id;
    this.show();
    this.changed();
  }

  show() {
    BRUSHES.forEach(({ id }, i) => {
      this.buttons[i].setAttribute("aria-checked", String(id === chosen.brush));
      this.buttons[i].tabIndex = id === chosen.brush ? 0 : -1;
    });
    const seed = chosen.brush === "reinit";
    this.value.classList.toggle("off", !seed && chosen.brush !== "blend");
    this.symbol.textContent = seed ? "seed" : "α";
    Object.assign(this.field, seed ? { step: 1, min: 0, max: MOST_SEED } : { step: 0.05, min: -MOST_ALPHA, max: MOST_ALPHA });
    this.field.setAttribute("aria-label", seed ? "Seed of the random weights" : "Alpha: the share of B in a blend");
    this.field.value = seed ? chosen.seed : chosen.alpha;
    this.field.setCustomValidity("");
  }

  read() {
    const value = this.field.valueAsNumber;
    const seed = chosen.brush === "reinit";
    const good = seed ? Number.isInteger(value) && value >= 0 && value <= MOST_SEED : Math.abs(value) <= MOST_ALPHA;
    this.field.setCustomValidity(good ? "" : seed ? "A whole number from 0" : "A number, such as 0.5");
    if (!good) return;
    if (seed) chosen.seed = value;
    else chosen.alpha = Number(value.toFixed(4));
    this.changed();
  }

  key(event) {
    // 1 to 7 choose a brush, + and - its alpha or seed; true if the key was one of these
    const brush = BRUSHES[Number(event.key) - 1];
    const step = { "+": 1, "=": 1, "-": -1 }[event.key];
    if (brush) this.choose(brush.id);
    else if (step && chosen.brush === "blend") chosen.alpha = Number((chosen.alpha + step * 0.1).toFixed(4));
    else if (step && chosen.brush === "reinit") chosen.seed = Math.max(0, chosen.seed + step);
    else return false;
    this.show();
    this.changed();
    return true;
  }
}

class Layers {
  constructor(element, layers, thirds, changed) {
    this.layers = layers;
    this.changed = changed;
    if (chosen.layers !== layers) Object.assign(chosen, { ranges: null, layers });
    const all = { word: "all layers", ranges: null, bars: [0, 1, 2] };
    const parts = thirds.map(([word, low, high], i) => ({ word: `${word}, layers ${low}-${high}`, ranges: [[low, high]], bars: [i] }));
    this.parts = [all, ...(thirds.length === 3 ? parts : [])];
    this.buttons = this.parts.map((part) => this.button(part));
    this.field = make("input", "where");
    this.field.type = "text";
    this.field.title = "Layers that row names and row sliders act on, such as 0-2,5";
    this.field.setAttribute("aria-label", "Layers that rows act on");
    this.field.onchange = () => this.read();
    element.replaceChildren(make("span", "word", "rows act on"), ...this.buttons, this.field);
    this.show();
  }

  button({ word, ranges, bars }) {
    const button = make("button", "part");
    button.type = "button";
    button.title = `Rows act on ${word}`;
    button.setAttribute("aria-label", button.title);
    button.append(...[0, 1, 2].map((bar) => make("i", bars.includes(bar) ? "on" : "")));
    button.onclick = () => this.choose(ranges);
    return button;
  }

  choose(ranges) {
    chosen.ranges = ranges;
    this.show();
    this.changed();
  }

  show() {
    const text = (ranges) => layersText(ranges ?? [[0, this.layers - 1]]);
    this.parts.forEach(({ ranges }, i) => this.buttons[i].setAttribute("aria-pressed", String(text(ranges) === text(chosen.ranges))));
    this.field.value = text(chosen.ranges);
    this.field.setCustomValidity("");
  }

  read() {
    const ranges = layersOf(this.field.value, this.layers);
    if (ranges) this.choose(layersText(ranges) === `0-${this.layers - 1}` ? null : ranges);
    else this.field.setCustomValidity(`Layers from 0 to ${this.layers - 1}, such as 0-2,5`);
  }
}
