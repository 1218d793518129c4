// The module x layer board: draws what Python sends, answers every click at once, and tells Python what was asked for.
//
// data = {rows, layers, low, high, ack: [instance, seq]}
//   rows[i] = {module, layered, explain, s: [source code | null, ...], shift: [number | null, ...], fixed, detail}
//   one entry of s and shift per layer (one in all where the module has no layer), null where there is no such tensor;
//   fixed and detail map a column to why it cannot move, and to its source in words. low, high: ends of the shade's scale.
// A click is an operation {seq, cells: [[layer | null, module], ...], source: "A" | "B"}. Operations that Python has not yet
// acknowledged are drawn on top of its data and sent again with every new one, so that none is lost when clicks overtake runs.

const RAMP = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const INK = 0.6; // share of the ramp's colour in a cell
const boards = new WeakMap();

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function shade(value, paper) {
  // more is always nearer the eye: bright on dark, dark on bright; mixed with the paper, so that the dots stay on top
  const at = Math.min(1, Math.max(0, isDark(paper) ? value : 1 - value)) * (RAMP.length - 1);
  const low = Math.floor(at);
  const high = Math.min(RAMP.length - 1, low + 1);
  const [from, to] = [rgb(RAMP[low]), rgb(RAMP[high])];
  const mixed = from.map((part, i) => INK * (part + (to[i] - part) * (at - low)) + (1 - INK) * paper[i]);
  return `rgb(${mixed.map(Math.round).join(" ")})`;
}

function paperOf(element) {
  const probe = getComputedStyle(element).getPropertyValue("--st-background-color").trim();
  const canvas = document.createElement("canvas").getContext("2d");
  canvas.fillStyle = probe || "#ffffff";
  return rgb(canvas.fillStyle);
}

function isDark([r, g, b]) {
  return 0.299 * r + 0.587 * g + 0.114 * b < 128;
}

class Board {
  constructor(root) {
    this.root = root;
    this.element = root.querySelector(".board");
    this.grid = root.querySelector(".grid");
    this.legend = root.querySelector(".legend");
    this.tip = root.querySelector(".tip");
    this.instance = Math.random().toString(36).slice(2, 12);
    this.seq = 0;
    this.pending = [];
    this.shape = "";
    this.at = [0, 0]; // row -1: layer numbers, column -1: module names
    this.brush = null;
    this.listen();
  }

  update(data, send) {
    this.data = data;
    this.send = send;
    const [instance, seq] = data.ack || ["", 0];
    if (instance === this.instance) this.pending = this.pending.filter((op) => op.seq > seq);
    const shape = JSON.stringify([data.layers, data.rows.map((row) => [row.module, row.fixed, row.s.map((code) => code !== null)])]);
    if (shape !== this.shape) this.build(shape);
    this.paint();
    this.drawLegend();
  }

  // ------------------------------------------------------------------ drawing

  build(shape) {
    this.shape = shape;
    const { rows, layers } = this.data;
    const columns = Math.max(1, layers);
    this.element.style.setProperty("--columns", columns);
    this.element.style.setProperty("--dot", layers > 40 ? "8px" : "11px");
    this.grid.replaceChildren();
    this.nodes = new Map();
    const corner = this.add("div", "corner", null);
    corner.textContent = layers ? "layer" : "";
    const every = layers <= 32 ? 1 : 4;
    for (let layer = 0; layer < layers; layer++) {
      const node = this.add("div", "number" + (layer % every ? " quiet" : ""), [-1, layer]);
      node.textContent = layer;
      node.setAttribute("role", "columnheader");
      node.setAttribute("aria-label", `layer ${layer}: move the whole layer`);
    }
    rows.forEach((row, r) => {
      const name = this.add("div", "name", [r, -1]);
      name.textContent = row.module;
      name.style.gridColumn = 1;
      name.setAttribute("role", "rowheader");
      name.setAttribute("aria-label", `${row.module}: move the whole row. ${row.explain}`);
      row.s.forEach((code, c) => {
        const kind = code === null ? " absent" : (row.layered ? "" : " wide") + (row.fixed[c] ? " fixed" : "");
        const node = this.add("div", "cell" + kind, code === null ? null : [r, c]);
        if (code === null) return;
        node.setAttribute("role", "gridcell");
        node.appendChild(document.createElement("span")).className = "mark";
      });
    });
    if (!this.node(this.at)) this.at = [0, 0];
    this.tabStop();
  }

  add(tag, className, at) {
    const node = document.createElement(tag);
    node.className = className;
    if (at) {
      node.dataset.at = String(at);
      node.tabIndex = -1;
      this.nodes.set(String(at), node);
    }
    this.grid.appendChild(node);
    return node;
  }

  paint() {
    this.now = this.data.rows.map((row) => [...row.s]);
    const rowOf = new Map(this.data.rows.map((row, r) => [`${row.layered} ${row.module}`, r]));
    for (const op of this.pending) {
      for (const [layer, module] of op.cells) {
        const r = rowOf.get(`${layer !== null} ${module}`);
        if (r !== undefined && this.now[r][layer ?? 0]) this.now[r][layer ?? 0] = op.source;
      }
    }
    this.paper = paperOf(this.element);
    this.data.rows.forEach((row, r) =>
      row.s.forEach((code, c) => {
        if (code === null) return;
        const node = this.nodes.get(`${r},${c}`);
        node.dataset.s = this.now[r][c];
        const level = row.fixed[c] ? null : this.level(row.shift[c]);
        if (level === null) node.style.removeProperty("--shade");
        else node.style.setProperty("--shade", shade(level, this.paper));
        node.setAttribute("aria-label", `${this.place(r, c)}: ${this.source(r, c)}. ${this.note(r, c)}`);
      }),
    );
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
    if (row.fixed[c]) return `stays from A: ${row.fixed[c]}`;
    const code = this.now[r][c];
    if (code === row.s[c] && row.detail[c]) return row.detail[c];
    return { A: "from A", B: "from B", blend: "blend of A and B", damaged: "damaged", partly: "partly from B" }[code];
  }

  note(r, c) {
    const shift = this.data.rows[r].shift[c];
    return shift === null ? "How far it moved is not measured yet." : `Moved by ${shift.toPrecision(3)} (RMS shift per element, from A to B).`;
  }

  drawLegend() {
    const key = (code, text) => {
      const span = document.createElement("span");
      span.innerHTML = `<div class="cell key" data-s="${code}"><span class="mark"></span></div>`;
      span.append(text);
      return span;
    };
    const used = new Set(this.now.flat());
    const items = [key("A", "from A"), key("B", "from B")];
    if (used.has("blend")) items.push(key("blend", "blend"));
    if (used.has("partly")) items.push(key("partly", "partly from B"));
    if (used.has("damaged")) items.push(key("damaged", "damaged"));
    const scale = document.createElement("span");
    const { low, high } = this.data;
    scale.append(high === null ? "shade: not measured yet, see Delta" : `shade: RMS shift ${low.toPrecision(2)}`);
    if (high !== null) {
      const ramp = document.createElement("div");
      ramp.className = "ramp";
      const stops = [0, 0.2, 0.4, 0.6, 0.8, 1].map((value) => shade(value, this.paper));
      ramp.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
      scale.append(ramp, high.toPrecision(2));
    }
    this.legend.replaceChildren(...items, scale);
  }

  // ------------------------------------------------------------------ what a gesture means

  cellsOf([r, c]) {
    if (r < 0) return this.block([0, c], [this.data.rows.length - 1, c], true);
    const row = this.data.rows[r];
    if (c < 0) return this.block([r, 0], [r, row.s.length - 1]);
    return this.block([r, c], [r, c]);
  }

  block(from, to, layeredOnly = false) {
    const [top, bottom] = [Math.min(from[0], to[0]), Math.max(from[0], to[0])];
    const [left, right] = [Math.min(from[1], to[1]), Math.max(from[1], to[1])];
    const found = [];
    for (let r = top; r <= bottom; r++) {
      const row = this.data.rows[r];
      if (layeredOnly && !row.layered) continue;
      row.s.forEach((code, c) => {
        if (code !== null && !row.fixed[c] && (!row.layered || (c >= left && c <= right))) found.push([r, c]);
      });
    }
    return found;
  }

  wanted(cells) {
    const codes = cells.map(([r, c]) => this.now[r][c]);
    if (codes.length === 1) return codes[0] === "A" ? "B" : "A";
    return codes.some((code) => code !== "B") ? "B" : "A";
  }

  act(cells, source) {
    this.tip.classList.remove("on"); // what was clicked shall be seen
    if (!cells.length) return;
    const named = cells.map(([r, c]) => [this.data.rows[r].layered ? c : null, this.data.rows[r].module]);
    this.pending.push({ seq: ++this.seq, cells: named, source });
    this.paint();
    this.drawLegend();
    this.send({ instance: this.instance, ops: this.pending });
  }

  // ------------------------------------------------------------------ pointer and keyboard

  listen() {
    const grid = this.grid;
    grid.onpointerdown = (event) => {
      const at = this.find(event);
      if (!at || event.button !== 0) return;
      event.preventDefault();
      this.focus(at, false);
      if (at[0] < 0 || at[1] < 0) {
        this.act(this.cellsOf(at), this.wanted(this.cellsOf(at)));
        return;
      }
      const start = this.cellsOf(at);
      if (!start.length) return;
      this.brush = { from: at, to: at, source: this.wanted(start) };
      grid.setPointerCapture(event.pointerId);
      this.showBrush();
    };
    grid.onpointermove = (event) => {
      const at = this.find(event);
      if (this.brush) {
        if (at && at[0] >= 0 && at[1] >= 0 && String(at) !== String(this.brush.to)) {
          this.brush.to = at;
          this.showBrush();
        }
        return;
      }
      this.hover(at, event.clientX, event.clientY);
    };
    grid.onpointerup = () => this.endBrush(true);
    grid.onpointercancel = () => this.endBrush(false);
    grid.onpointerleave = () => this.brush || this.hover(null);
    grid.onkeydown = (event) => this.key(event);
    grid.onfocusout = () => this.hover(null);
  }

  find(event) {
    const under = this.root.elementFromPoint(event.clientX, event.clientY);
    const node = under && under.closest ? under.closest("[data-at]") : null;
    if (!node || !this.grid.contains(node)) return null;
    const [r, c] = node.dataset.at.split(",").map(Number);
    return node.classList.contains("wide") ? [r, this.layerAt(event.clientX)] : [r, c];
  }

  layerAt(x) {
    for (let layer = 0; layer < this.data.layers; layer++) {
      if (x < this.nodes.get(`-1,${layer}`).getBoundingClientRect().right) return layer;
    }
    return 0;
  }

  brushed() {
    const { from, to } = this.brush;
    return String(from) === String(to) ? this.cellsOf(from) : this.block(from, to);
  }

  showBrush() {
    for (const node of this.grid.querySelectorAll(".brushed")) node.classList.remove("brushed");
    if (!this.brush) return;
    this.tip.classList.remove("on");
    for (const at of this.brushed()) this.nodes.get(String(at)).classList.add("brushed");
  }

  endBrush(take) {
    if (!this.brush) return;
    const cells = this.brushed();
    const { source } = this.brush;
    this.brush = null;
    this.showBrush();
    if (take) this.act(cells, source);
  }

  key(event) {
    const node = event.target.closest("[data-at]"); // assistive tools set the focus themselves
    if (node && node !== this.node(this.at)) this.at = node.dataset.at.split(",").map(Number);
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) {
      event.preventDefault();
      this.move(step);
    } else if (event.key === "Home" || event.key === "End") {
      event.preventDefault();
      this.focus([this.at[0], event.key === "Home" ? -1 : this.data.layers - 1], true);
    } else if (event.key === " " || event.key === "Enter") {
      event.preventDefault();
      const cells = this.cellsOf(this.at);
      this.act(cells, this.wanted(cells));
    }
  }

  node([r, c]) {
    const wide = r >= 0 && c >= 0 && !this.data.rows[r]?.layered;
    return this.nodes.get(wide ? `${r},0` : `${r},${c}`);
  }

  move([down, right]) {
    let [r, c] = this.at;
    if (right && r >= 0 && !this.data.rows[r].layered) return this.focus([r, right < 0 ? -1 : Math.max(c, 0)], true);
    for (;;) {
      r += down;
      c += right;
      if (r < -1 || r >= this.data.rows.length || c < -1 || c >= Math.max(1, this.data.layers)) return;
      if (this.node([r, c])) return this.focus([r, c], true);
    }
  }

  focus(at, show) {
    const node = this.node(at);
    if (!node) return;
    this.at = at;
    this.tabStop();
    node.focus({ preventScroll: !show });
    if (show) {
      const box = node.getBoundingClientRect();
      this.hover(at, box.left + box.width / 2, box.bottom);
    }
  }

  tabStop() {
    for (const node of this.grid.querySelectorAll('[tabindex="0"]')) node.tabIndex = -1;
    const node = this.node(this.at);
    if (node) node.tabIndex = 0;
  }

  // ------------------------------------------------------------------ the explanation

  hover(at, x, y) {
    for (const node of this.grid.querySelectorAll(".lit")) node.classList.remove("lit");
    this.tip.classList.toggle("on", Boolean(at));
    if (!at) return;
    const [r, c] = at;
    if (r >= 0) this.nodes.get(`${r},-1`)?.classList.add("lit");
    if (c >= 0 && (r < 0 || this.data.rows[r].layered)) this.nodes.get(`-1,${c}`)?.classList.add("lit");
    this.explain(r, r >= 0 && c >= 0 && !this.data.rows[r].layered ? 0 : c);
    const box = this.tip.getBoundingClientRect();
    const right = document.documentElement.clientWidth;
    const bottom = document.documentElement.clientHeight;
    const left = x + 16 + box.width > right ? x - box.width - 12 : x + 16;
    const top = y + 18 + box.height > bottom ? y - box.height - 12 : y + 18;
    const own = this.origin();
    this.tip.style.left = `${Math.max(4, left) - own.x}px`;
    this.tip.style.top = `${Math.max(4, top) - own.y}px`;
  }

  origin() {
    // a transformed ancestor makes "fixed" relative to itself; measure instead of assuming
    this.tip.style.left = this.tip.style.top = "0px";
    const box = this.tip.getBoundingClientRect();
    return { x: box.left, y: box.top };
  }

  explain(r, c) {
    const line = (tag, text) => {
      const node = document.createElement(tag);
      node.textContent = text;
      return node;
    };
    if (r < 0) {
      this.tip.replaceChildren(line("b", `Layer ${c}`), line("i", "Click: take the whole layer from B, or give it back to A."));
      return;
    }
    const row = this.data.rows[r];
    if (c < 0) {
      const act = row.layered ? "Click: take the whole row from B, or give it back to A." : "Click: take it from B, or give it back to A.";
      this.tip.replaceChildren(line("b", row.module), line("div", row.explain), line("i", act));
      return;
    }
    const act = row.fixed[c] ? "" : " Click to toggle, drag to brush a block.";
    const source = this.source(r, c);
    this.tip.replaceChildren(
      line("b", this.place(r, c)),
      line("div", row.explain),
      line("div", this.note(r, c)),
      line("i", `${source[0].toUpperCase()}${source.slice(1)}.${act}`),
    );
  }
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  let board = boards.get(parentElement);
  if (!board || board.element !== parentElement.querySelector(".board")) {
    board = new Board(parentElement);
    boards.set(parentElement, board);
  }
  board.update(data, (value) => setTriggerValue("toggle", value));
  return () => boards.delete(parentElement);
}
