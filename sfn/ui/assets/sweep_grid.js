// The grid of a sweep: draws what Python sends, changes only the cells that changed, and tells Python which one was opened.
//
// data = {corner, columns: [{label, help}], rows: [{label, help, kind}], cells, open, figure, legend, dark, and lengths: name, tall, wide, cell, lines}
//   cells[r][c] = {s, t, v, f, h, l, why, hint, span}: state; beginning of the text; the figure in words; the line under it; whether the
//   reference is reached (true, false, null); level of the colour, 0 to 1, null for none; why there is no answer; hint; columns spanned.
//   rows hold A's and B's own answers first (kind "A", "B"). open = [r, c] or null. Everything is text, never HTML.

const grids = new WeakMap();

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

class Grid {
  constructor(root) {
    this.element = root.querySelector(".sweep");
    this.scroll = root.querySelector(".scroll");
    this.legend = root.querySelector(".legend");
    this.shape = "";
    this.at = [0, 0];
    this.scroll.onclick = (event) => this.click(event);
    this.scroll.onkeydown = (event) => this.key(event);
  }

  update(data, send) {
    this.data = data;
    this.send = send;
    const style = this.element.style;
    style.setProperty("--tall", data.tall);
    style.setProperty("--wide", data.wide);
    style.setProperty("--cell", data.cell);
    style.setProperty("--rows", data.lines);
    this.element.classList.toggle("dark", data.dark);
    const shape = JSON.stringify([data.corner, data.columns, data.rows, data.cells.map((row) => row.length)]);
    if (shape !== this.shape) this.build(shape);
    this.paint();
    this.explain();
  }

  build(shape) {
    this.shape = shape;
    const { corner, columns, rows, cells } = this.data;
    const table = make("table");
    table.setAttribute("role", "grid");
    table.setAttribute("aria-label", "Recipes by what was asked");
    const widths = make("colgroup");
    const first = make("col");
    first.style.width = this.data.name;
    widths.append(first, ...columns.map(() => make("col")));
    const head = make("thead").appendChild(make("tr"));
    head.append(this.title(corner, "", "col"), ...columns.map((column) => this.title(column.label, column.help, "col")));
    const body = make("tbody");
    this.nodes = cells.map((row, r) => {
      const line = body.appendChild(make("tr", rows[r].kind === "B" ? "apart" : ""));
      const name = this.title(rows[r].label, rows[r].help, "row");
      name.dataset.kind = rows[r].kind;
      line.appendChild(name);
      return row.map((cell, c) => {
        const place = line.appendChild(make("td"));
        if (cell.span > 1) place.colSpan = cell.span;
        const button = place.appendChild(make("button"));
        button.dataset.at = `${r},${c}`;
        button.tabIndex = -1;
        return { place, button, drawn: "" };
      });
    });
    table.append(widths, head.parentNode, body);
    this.scroll.replaceChildren(table);
    if (!this.nodes[this.at[0]]?.[this.at[1]]) this.at = [0, 0];
    this.tabStop();
  }

  title(label, help, scope) {
    const node = make("th");
    node.scope = scope;
    node.title = help ? `${label}\n${help}` : label;
    node.appendChild(make("div", "name", label));
    return node;
  }

  paint() {
    const { cells, rows, columns, open, figure } = this.data;
    cells.forEach((row, r) =>
      row.forEach((cell, c) => {
        const node = this.nodes[r][c];
        const isOpen = Boolean(open && open[0] === r && open[1] === c);
        node.place.classList.toggle("open", isOpen);
        const wanted = JSON.stringify([cell, figure]);
        if (wanted === node.drawn) return;
        node.drawn = wanted;
        node.place.dataset.s = cell.s;
        if (cell.l === null) node.place.style.removeProperty("--level");
        else node.place.style.setProperty("--level", cell.l);
        const parts = [];
        if (cell.v) parts.push(make("div", cell.h === false && figure === "contains" ? "value quiet" : "value", cell.v));
        parts.push(make("div", "text", cell.why || cell.t));
        const foot = make("div", "foot");
        if (cell.h !== null) foot.append(make("b", "", cell.h ? "✓ " : "✗ "));
        foot.append(cell.f);
        parts.push(foot);
        node.button.replaceChildren(...parts);
        const asked = cell.span > 1 ? "" : `, ${columns[c]?.label ?? ""}`;
        node.button.setAttribute("aria-label", `${rows[r].label}${asked}: ${cell.v} ${cell.why || cell.t} ${cell.f}`);
        node.button.title = cell.why || cell.hint;
      }),
    );
  }

  explain() {
    const items = this.data.legend.map(([mark, text]) => {
      const span = make("span");
      if (mark === "ramp") {
        const [low, high] = text;
        span.append(low, make("i", "ramp"), high);
      } else {
        if (mark.length > 1) span.append(make("i", mark));
        else span.append(make("b", "", mark));
        span.append(text);
      }
      return span;
    });
    this.legend.replaceChildren(...items);
  }

  click(event) {
    const button = event.target.closest("[data-at]");
    if (!button) return;
    this.at = button.dataset.at.split(",").map(Number);
    this.tabStop();
    for (const node of this.nodes.flat()) node.place.classList.toggle("open", node.button === button); // at once
    this.send({ row: this.at[0], column: this.at[1] });
    this.show(30);
  }

  show(tries) {
    // the opened cell is drawn below the grid by Streamlit: bring it into sight once it is there
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const opened = document.querySelector(".st-key-sweep_cell_opened");
      if (opened) opened.scrollIntoView({ block: "nearest", behavior: "smooth" });
      else if (tries) this.show(tries - 1);
    }, 150);
  }

  key(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const row = Math.min(this.nodes.length - 1, Math.max(0, this.at[0] + step[0]));
    const column = Math.min(this.nodes[row].length - 1, Math.max(0, this.at[1] + step[1]));
    this.at = [row, column];
    this.tabStop();
    this.nodes[row][column].button.focus();
  }

  tabStop() {
    for (const node of this.nodes.flat()) node.button.tabIndex = -1;
    const node = this.nodes[this.at[0]]?.[this.at[1]];
    if (node) node.button.tabIndex = 0;
  }
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  let grid = grids.get(parentElement);
  if (!grid || grid.element !== parentElement.querySelector(".sweep")) {
    grid = new Grid(parentElement);
    grids.set(parentElement, grid);
  }
  grid.update(data, (value) => setTriggerValue("open", value));
  return () => grids.delete(parentElement);
}
