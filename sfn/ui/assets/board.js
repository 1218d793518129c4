// The module x layer board: draws what Python sends, answers every gesture at once, and tells Python what was asked for.
//
// data = {rows, layers, thirds, low, high, note, ack: [instance, seq]}
//   rows[i] = {module, layered, explain, s: [source | null, ...], shift: [number | null, ...], fixed, detail}
//   one entry of s and shift per layer (one in all where the module has no layer), null where there is no such tensor;
//   fixed and detail map a column to why it cannot come from B, and to its sources in words. low, high: ends of the
//   shade's scale. thirds: [[words, first layer, last layer], ...]. note: on the shade, where something is to be said.
// A gesture is an operation {seq, act: "paint" | "invert" | "undo" | "redo", cells: [[layer | null, module], ...],
// source}. Operations that Python has not yet acknowledged are drawn on top of its data and sent again with every new
// one, so that none is lost when gestures overtake runs.

const NUMBER_PX = 22; // what the number of a layer takes
const boards = new WeakMap();

class Board {
  constructor(root) {
    this.root = root;
    this.element = root.querySelector(".board");
    this.grid = root.querySelector(".grid");
    this.tip = new Tip(this, root.querySelector(".tip"));
    this.bar = new Bar(root.querySelector(".bar"), () => this.paintFrame());
    this.blends = new Blends(this);
    this.instance = Math.random().toString(36).slice(2, 12);
    this.seq = 0;
    this.pending = [];
    this.shape = "";
    this.previewed = null; // drawn on top of all, told to nobody
    this.hand = new Hand(this);
    new ResizeObserver(() => this.nodes && this.thinOut()).observe(this.grid);
  }

  update(data, send) {
    this.data = data;
    this.send = send;
    const [instance, seq] = data.ack || ["", 0];
    if (instance === this.instance) this.pending = this.pending.filter((op) => op.seq > seq);
    const shape = JSON.stringify([data.layers, data.rows.map((row) => [row.module, row.fixed, row.s.map((source) => source !== null)])]);
    if (shape !== this.shape) this.build(shape);
    this.paint();
    this.drawLegend();
  }

  // ------------------------------------------------------------------ drawing

  build(shape) {
    this.shape = shape;
    const { rows, layers, thirds } = this.data;
    this.element.style.setProperty("--columns", Math.max(1, layers));
    this.element.style.setProperty("--dot", layers > 40 ? "9px" : "11px");
    this.grid.replaceChildren();
    this.nodes = new Map();
    this.blends.nodes.clear();
    this.held = rows.map((row) => row.s.map(() => ""));
    const corner = this.add("div", "corner", null);
    if (layers) this.layers = new Layers(corner, layers, thirds, () => this.paintFrame());
    for (let layer = 0; layer < layers; layer++) {
      const node = this.add("div", "number", [-1, layer]);
      node.textContent = layer;
      node.setAttribute("role", "columnheader");
      node.setAttribute("aria-label", `layer ${layer}: the whole layer`);
    }
    rows.forEach((row, r) => this.buildRow(row, r));
    this.addName(rows.length, "whole board", "Every module of the board.");
    this.legend = this.add("div", "legend", null);
    this.thinOut();
    this.hand.tabStop();
  }

  buildRow(row, r) {
    this.addName(r, row.module, row.explain);
    row.s.forEach((source, c) => {
      const kind = source === null ? " absent" : (row.layered ? "" : " wide") + (row.fixed[c] ? " fixed" : "");
      const node = this.add("div", "cell" + kind, source === null ? null : [r, c]);
      if (source === null) return;
      node.setAttribute("role", "gridcell");
      node.append(make("span", "mark"));
    });
  }

  thinOut() {
    // as many numbers of layers as there is room for
    const { layers } = this.data;
    const width = layers ? this.nodes.get("-1,0").getBoundingClientRect().width : 0;
    const every = [1, 2, 4, 8].find((step) => width * step >= NUMBER_PX) ?? 16;
    for (let layer = 0; layer < layers; layer++) this.nodes.get(`-1,${layer}`).classList.toggle("quiet", layer % every > 0);
  }

  addName(r, words, explain) {
    const name = this.add("div", "name", [r, -1]);
    name.textContent = words;
    name.setAttribute("role", "rowheader");
    name.setAttribute("aria-label", `${words}: the whole row. ${explain}`);
    this.grid.append(this.blends.node(r, words));
  }

  add(tag, className, at) {
    const node = make(tag, className);
    if (at) {
      node.dataset.at = String(at);
      node.tabIndex = -1;
      this.nodes.set(String(at), node);
    }
    this.grid.append(node);
    return node;
  }

  node([r, c]) {
    const wide = r >= 0 && c >= 0 && this.data.rows[r] && !this.data.rows[r].layered;
    return this.nodes.get(wide ? `${r},0` : `${r},${c}`);
  }

  paint() {
    this.now = this.replay();
    this.paper = paperOf(this.element);
    this.data.rows.forEach((row, r) =>
      row.s.forEach((base, c) => {
        if (base === null) return;
        const source = this.now[r][c];
        const level = row.fixed[c] ? null : this.level(row.shift[c]);
        const seen = `${source}|${level}|${this.paper}|${row.detail[c] ?? ""}`;
        if (this.held[r][c] === seen) return; // most cells are as they were
        this.held[r][c] = seen;
        this.paintCell(this.nodes.get(`${r},${c}`), source, level);
        this.nodes.get(`${r},${c}`).setAttribute("aria-label", `${this.place(r, c)}: ${this.source(r, c)}. ${this.note(r, c)}`);
      }),
    );
    this.paintFrame();
  }

  paintCell(node, source, level) {
    node.dataset.s = markOf(source);
    node.style.setProperty("--share", shareOf(source) ?? 0);
    if (level === null) node.style.removeProperty("--shade");
    else node.style.setProperty("--shade", shade(level, this.paper));
  }

  paintFrame() {
    // what depends on the layers that rows act on
    for (let layer = 0; layer < this.data.layers; layer++) this.nodes.get(`-1,${layer}`).classList.toggle("out", !actsOn(layer));
    this.blends.paint();
  }

  level(shift) {
    const { low, high } = this.data;
    if (shift === null || high === null) return null;
    return high > low ? (shift - low) / (high - low) : 0.5;
  }

  place(r, c) {
    const row = this.data.rows[r];
    return row.layered ? `Layer ${c} · ${row.module}` : row.module;
  }

  source(r, c) {
    const row = this.data.rows[r];
    const source = this.now[r][c];
    if (source === "") return row.fixed[c];
    const words = source === row.s[c] && row.detail[c] ? row.detail[c] : sourceWords(source);
    return row.fixed[c] ? `${words}; cannot come from B: ${row.fixed[c].replace(/\.$/, "")}` : words;
  }

  note(r, c) {
    const shift = this.data.rows[r].shift[c];
    return shift === null ? "How far it moved is not measured." : `Moved by ${shift.toPrecision(3)} (RMS shift per element, from A to B).`;
  }

  drawLegend() {
    const used = new Set(this.now.flat());
    const { low, high, note } = this.data;
    const seen = `${used.has("mixed")} ${used.has("remove")} ${low} ${high} ${note} ${this.paper}`;
    if (this.legend.seen === seen) return;
    this.legend.seen = seen;
    const key = (mark, text) => {
      const span = make("span");
      span.append(swatch(mark), text);
      return span;
    };
    const items = [];
    if (high !== null) {
      const scale = make("span", "scale");
      const ramp = make("div", "ramp");
      const stops = [0, 0.2, 0.4, 0.6, 0.8, 1].map((value) => shade(value, this.paper));
      ramp.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
      scale.append(low.toPrecision(2), ramp, `${high.toPrecision(2)} RMS shift`);
      items.push(scale);
    }
    if (note) items.push(make("span", "said", note));
    if (used.has("mixed")) items.push(key("mixed", "several sources"));
    if (used.has("remove")) items.push(key("remove", "layer removed"));
    this.legend.title = note;
    this.legend.replaceChildren(...items);
  }

  // ------------------------------------------------------------------ what was asked for and not yet acknowledged

  replay() {
    this.rowOf = new Map(this.data.rows.map((row, r) => [`${row.layered} ${row.module}`, r]));
    let now = this.data.rows.map((row) => row.s);
    const past = [];
    for (const op of this.pending) {
      if (op.act === "undo") now = past.pop() ?? now; // what lies further back is Python's to know
      else if (op.act !== "redo") {
        past.push(now);
        now = this.after(now, op);
      }
    }
    return this.previewed ? this.after(now, this.previewed) : now;
  }

  after(before, { act, cells, source }) {
    const now = before.map((row) => [...row]);
    const spots = cells.map(([layer, module]) => [this.rowOf.get(`${layer !== null} ${module}`), layer ?? 0]);
    const there = spots.filter(([r, c]) => r !== undefined && now[r][c]);
    if (act === "paint") {
      const back = new Set(there.filter(([r, c]) => now[r][c] === "remove").map(([, c]) => c));
      if (back.size) now.forEach((row) => row.forEach((held, c) => back.has(c) && held === "remove" && (row[c] = "A")));
    }
    for (const [r, c] of there) now[r][c] = act === "paint" ? source : inverse(now[r][c]);
    return now;
  }

  named(cells) {
    return cells.map(([r, c]) => [this.data.rows[r].layered ? c : null, this.data.rows[r].module]);
  }

  preview(cells, source) {
    this.previewed = cells && { act: "paint", cells: this.named(cells), source };
    this.paint();
  }

  act(gesture, cells) {
    this.tip.cover(); // what was clicked shall be seen
    const takes = ([r, c]) => this.now[r][c] && !(this.data.rows[r].fixed[c] && needsB(gesture.source ?? gesture.act));
    const named = this.named(cells.filter(takes));
    if (!named.length) return;
    this.tell({ ...gesture, cells: named });
  }

  tell(op) {
    this.pending.push({ seq: ++this.seq, ...op });
    this.paint();
    this.drawLegend();
    this.send({ instance: this.instance, ops: this.pending });
  }

  // ------------------------------------------------------------------ what a gesture means

  cellsOf([r, c]) {
    const last = this.data.rows.length - 1;
    if (r < 0) return this.block([0, c], [last, c], true);
    if (c < 0) return this.rowCells(r, r);
    return this.block([r, c], [r, c]);
  }

  rowCells(from, to) {
    const [top, bottom] = to > this.data.rows.length - 1 ? [0, this.data.rows.length - 1] : [Math.min(from, to), Math.max(from, to)];
    const whole = to > this.data.rows.length - 1 && chosen.ranges !== null;
    return this.block([top, 0], [bottom, Infinity], whole).filter(([r, c]) => !this.data.rows[r].layered || actsOn(c));
  }

  block(from, to, layeredOnly = false) {
    const [top, bottom] = [Math.min(from[0], to[0]), Math.max(from[0], to[0])];
    const [left, right] = [Math.min(from[1], to[1]), Math.max(from[1], to[1])];
    const found = [];
    for (let r = top; r <= bottom; r++) {
      const row = this.data.rows[r];
      if (layeredOnly && !row.layered) continue;
      row.s.forEach((source, c) => {
        if (source && (!row.layered || (c >= left && c <= right))) found.push([r, c]);
      });
    }
    return found;
  }

  gesture(cells) {
    // what the brush does to these cells: where all have its source already, it gives them back to A
    const free = cells.filter(([r, c]) => !this.data.rows[r].fixed[c]);
    const source = brushSource();
    if (source === "invert") return { act: "invert" };
    if (source === "toggle") {
      const held = (cells.length === 1 ? cells : free).map(([r, c]) => this.now[r][c]);
      const back = cells.length === 1 ? held[0] !== "A" : held.every((each) => each === "B");
      return { act: "paint", source: back ? "A" : "B" };
    }
    const meant = needsB(source) ? free : cells;
    return { act: "paint", source: meant.every(([r, c]) => this.now[r][c] === source) ? "A" : source };
  }

  sliding(r) {
    return this.rowCells(r, r).filter(([row, c]) => !this.data.rows[row].fixed[c]);
  }

  shares(r) {
    return this.sliding(r).map(([row, c]) => shareOf(this.now[row][c])).filter((share) => share !== null);
  }
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  let board = boards.get(parentElement);
  if (!board || board.element !== parentElement.querySelector(".board")) {
    board = new Board(parentElement);
    boards.set(parentElement, board);
  }
  board.update(data, (value) => setTriggerValue("gesture", value));
  return () => boards.delete(parentElement);
}
