// Mouse, pen, finger and keys on the board: which cells they mean. What is then done to these is the board's.

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

class Hand {
  constructor(board) {
    this.board = board;
    this.at = [0, 0]; // the focus; row -1: layer numbers, row n: the whole board, column -1: names of rows
    this.brush = null; // {from, to, gesture} while a pointer is down
    const { grid } = board;
    grid.onpointerdown = (event) => this.press(event);
    grid.onpointermove = (event) => this.drag(event);
    grid.onpointerup = (event) => this.lift(event, true);
    grid.onpointercancel = (event) => this.lift(event, false);
    grid.onpointerleave = () => this.brush || board.tip.hide();
    grid.onfocusout = () => board.tip.hide();
    board.element.onkeydown = (event) => this.key(event);
  }

  // ------------------------------------------------------------------ pointer

  press(event) {
    if (event.button !== 0) return;
    const { board } = this;
    const slide = event.target.closest(".slide");
    if (slide) {
      event.preventDefault();
      board.tip.hide();
      if (board.blends.grab(Number(slide.dataset.slide), event)) board.grid.setPointerCapture(event.pointerId);
      return;
    }
    const at = this.find(event);
    if (!at) return;
    event.preventDefault();
    board.blends.settle();
    this.focus(at, false);
    const cells = board.cellsOf(at);
    if (!cells.length) return;
    this.brush = { from: at, to: at, gesture: board.gesture(cells) };
    board.grid.setPointerCapture(event.pointerId);
    this.showBrush();
  }

  drag(event) {
    const { board } = this;
    if (board.blends.held?.track) {
      board.blends.drag(event);
      return;
    }
    const at = this.find(event);
    if (!this.brush) {
      board.tip.show(at, event.clientX, event.clientY, event.target.closest?.(".slide"));
    } else if (at && this.kind(at) === this.kind(this.brush.from) && String(at) !== String(this.brush.to)) {
      this.brush.to = at;
      this.showBrush();
    }
  }

  lift(event, take) {
    const { board } = this;
    if (board.blends.held?.track) board.blends.release(take);
    if (!this.brush) return;
    const cells = this.brushed();
    const { gesture, to } = this.brush;
    this.brush = null;
    this.showBrush();
    if (!take) return;
    board.act(gesture, cells);
    if (event.pointerType === "touch") board.tip.flash(to, event.clientX, event.clientY + 24);
  }

  kind([r, c]) {
    return r < 0 ? "layer" : c >= 0 ? "cell" : r === this.board.data.rows.length ? "all" : "row";
  }

  find(event) {
    const { root, grid } = this.board;
    const node = root.elementFromPoint(event.clientX, event.clientY)?.closest?.("[data-at]");
    if (!node || !grid.contains(node)) return null;
    const [r, c] = node.dataset.at.split(",").map(Number);
    return node.classList.contains("wide") ? [r, this.layerAt(event.clientX)] : [r, c];
  }

  layerAt(x) {
    for (let layer = 0; layer < this.board.data.layers; layer++) {
      if (x < this.board.nodes.get(`-1,${layer}`).getBoundingClientRect().right) return layer;
    }
    return 0;
  }

  brushed() {
    const { board } = this;
    const { from, to } = this.brush;
    if (String(from) === String(to)) return board.cellsOf(from);
    if (from[0] < 0) return board.block([0, from[1]], [board.data.rows.length - 1, to[1]], true);
    return from[1] < 0 ? board.rowCells(from[0], to[0]) : board.block(from, to);
  }

  showBrush() {
    const { grid, nodes, tip } = this.board;
    for (const node of grid.querySelectorAll(".brushed")) node.classList.remove("brushed");
    if (!this.brush) return;
    tip.cover();
    for (const at of this.brushed()) nodes.get(String(at)).classList.add("brushed");
  }

  // ------------------------------------------------------------------ keyboard

  key(event) {
    if (event.target.tagName === "INPUT") return;
    const { board } = this;
    const letter = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (letter !== "z" && letter !== "y") return;
      event.preventDefault();
      board.blends.settle();
      board.tell({ act: letter === "y" || event.shiftKey ? "redo" : "undo", cells: [] });
    } else if (!event.altKey && board.bar.key(event)) {
      event.preventDefault();
    } else if (board.grid.contains(event.target) && event.target.dataset.at) {
      this.gridKey(event);
    }
  }

  gridKey(event) {
    const { board } = this;
    const step = ARROWS[event.key];
    this.follow(event.target);
    if (step && event.shiftKey && step[1] && this.at[0] >= 0 && this.at[1] < 0) {
      board.blends.nudge(this.at[0], step[1] * STEP);
    } else if (step) {
      this.move(step);
    } else if (event.key === "Home" || event.key === "End") {
      this.focus([this.at[0], event.key === "Home" ? -1 : board.data.layers - 1], true);
    } else if (event.key === " " || event.key === "Enter") {
      board.blends.settle();
      const cells = board.cellsOf(this.at);
      board.act(board.gesture(cells), cells);
    } else {
      return;
    }
    event.preventDefault();
  }

  follow(node) {
    // assistive tools set the focus themselves
    if (node !== this.board.node(this.at)) this.at = node.dataset.at.split(",").map(Number);
  }

  move([down, right]) {
    const { data } = this.board;
    let [r, c] = this.at;
    if (right && data.rows[r] && !data.rows[r].layered) {
      this.focus([r, right < 0 ? -1 : Math.max(c, 0)], true);
      return;
    }
    do {
      r += down;
      c += right;
      if (r < -1 || r > data.rows.length || c < -1 || c >= Math.max(1, data.layers)) return;
    } while (!this.board.node([r, c]));
    this.focus([r, c], true);
  }

  focus(at, show) {
    const node = this.board.node(at);
    if (!node) return;
    this.at = at;
    this.tabStop();
    node.focus({ preventScroll: !show });
    if (!show) return;
    const box = node.getBoundingClientRect();
    this.board.tip.show(at, box.left + box.width / 2, box.bottom);
  }

  tabStop() {
    if (!this.board.node(this.at)) this.at = [0, 0];
    for (const node of this.board.grid.querySelectorAll('[data-at][tabindex="0"]')) node.tabIndex = -1;
    const node = this.board.node(this.at);
    if (node) node.tabIndex = 0;
  }
}
