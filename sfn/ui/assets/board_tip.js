// The explanation beside the pointer or the focus: where, what it is, how far it moved, its source, what a click does.

class Tip {
  constructor(board, element) {
    this.board = board;
    this.element = element;
    this.timer = null;
  }

  hide() {
    this.show(null);
  }

  cover() {
    // out of the way of what was just done, the row and the layer stay lit
    this.element.classList.remove("on");
  }

  flash(at, x, y) {
    // a finger does not hover: the explanation comes after the tap and goes by itself
    this.show(at, x, y);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.hide(), 2500);
  }

  show(at, x, y, slide) {
    const { nodes, grid, data } = this.board;
    for (const node of grid.querySelectorAll(".lit")) node.classList.remove("lit");
    this.element.classList.toggle("on", Boolean(at || slide));
    if (!at && !slide) return;
    const [r, c] = at ?? [Number(slide.dataset.slide), -1];
    if (r >= 0) nodes.get(`${r},-1`)?.classList.add("lit");
    if (c >= 0 && (r < 0 || data.rows[r]?.layered)) nodes.get(`-1,${c}`)?.classList.add("lit");
    const lines = this.lines(r, r >= 0 && c >= 0 && !data.rows[r].layered ? 0 : c, Boolean(slide));
    this.element.replaceChildren(...lines.map(([tag, text]) => make(tag, "", text)));
    this.put(x, y);
  }

  put(x, y) {
    const { style } = this.element;
    const box = this.element.getBoundingClientRect();
    const { clientWidth: right, clientHeight: bottom } = document.documentElement;
    const left = x + 16 + box.width > right ? x - box.width - 12 : x + 16;
    const top = y + 18 + box.height > bottom ? y - box.height - 12 : y + 18;
    style.left = style.top = "0px";
    const own = this.element.getBoundingClientRect(); // a transformed ancestor makes "fixed" relative to itself
    style.left = `${Math.max(4, left) - own.x}px`;
    style.top = `${Math.max(4, top) - own.y}px`;
  }

  lines(r, c, slide) {
    const { board } = this;
    const does = brushWords();
    const row = board.data.rows[r];
    const where = row && !row.layered ? "" : rangeWords();
    const title = r < 0 ? `Layer ${c}` : row ? row.module : "The whole board";
    if (slide) {
      const drag = `Drag, or use the arrow keys, to blend${where}: left is A, right is B. Shift goes beyond both.`;
      return [["b", `${title}: share of B`], ["i", drag]];
    }
    if (r < 0) return [["b", title], ["i", `Click: ${does}, the whole layer. Drag over several.`]];
    if (c < 0) {
      const what = row && !row.layered ? "" : row ? ", the whole row" : ", everything";
      return [["b", title], ...(row ? [["div", row.explain]] : []), ["i", `Click: ${does}${what}${where}.`]];
    }
    const source = board.source(r, c);
    const act = board.now[r][c] === "" ? "" : ` Click or drag: ${does}.`;
    return [
      ["b", board.place(r, c)],
      ["div", row.explain],
      ["div", board.note(r, c)],
      ["i", `${source[0].toUpperCase()}${source.slice(1).replace(/\.$/, "")}.${act}`],
    ];
  }
}
