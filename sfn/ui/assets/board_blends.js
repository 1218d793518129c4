// The slider beside each row's name: the share of B in the row. Draws while it is dragged, tells the board when it is let go.

const STEP = 0.05;
const SETTLE_MS = 600; // a run of arrow keys is one step of the recipe

class Blends {
  // board: what offers sliding(r) -> cells a row's slider sets, shares(r) -> their shares, preview(cells, source), act
  constructor(board) {
    this.board = board;
    this.nodes = new Map();
    this.held = null; // {r, cells, alpha, track}
    this.timer = null;
  }

  node(r, name) {
    const node = make("div", "slide");
    node.dataset.slide = r;
    node.tabIndex = -1;
    node.setAttribute("role", "slider");
    node.setAttribute("aria-label", `${name}: share of B in the row`);
    node.setAttribute("aria-valuemin", 0);
    node.setAttribute("aria-valuemax", 1);
    const track = make("span", "track");
    track.append(make("span", "fill"), make("span", "knob"));
    node.append(track, make("span", "alpha"));
    node.onkeydown = (event) => this.key(event, r);
    node.onblur = () => this.settle();
    this.nodes.set(r, node);
    return node;
  }

  paint() {
    for (const [r, node] of this.nodes) {
      const shares = this.board.shares(r);
      const mean = shares.reduce((sum, share) => sum + share, 0) / (shares.length || 1);
      const even = shares.every((share) => share === shares[0]);
      const said = !shares.length || (even && !mean) ? "" : (even ? "" : "~") + short(mean);
      const seen = `${shares.length > 0} ${even} ${mean}`;
      if (node.seen === seen) continue;
      node.seen = seen;
      node.classList.toggle("off", !shares.length);
      node.classList.toggle("still", even && !mean);
      node.classList.toggle("uneven", !even);
      node.style.setProperty("--at", Math.min(1, Math.max(0, mean)));
      node.querySelector(".alpha").textContent = said;
      node.setAttribute("aria-valuenow", short(mean));
      node.setAttribute("aria-valuetext", even ? `${short(mean)} of B` : `${short(mean)} of B on average`);
    }
  }

  // ------------------------------------------------------------------ dragging

  grab(r, event) {
    const cells = this.board.sliding(r);
    if (!cells.length) return false;
    this.settle();
    this.nodes.get(r).focus({ preventScroll: true });
    this.held = { r, cells, alpha: null, track: this.nodes.get(r).querySelector(".track").getBoundingClientRect() };
    this.drag(event);
    return true;
  }

  drag(event) {
    const { track } = this.held;
    const at = (event.clientX - track.left) / track.width;
    const [low, high] = event.shiftKey ? [-1, 2] : [0, 1]; // with Shift beyond A and B
    this.set(Math.min(high, Math.max(low, Math.round(at / STEP) * STEP)));
  }

  set(alpha) {
    if (alpha === this.held.alpha) return;
    this.held.alpha = alpha;
    this.board.preview(this.held.cells, blendOf(alpha));
  }

  release(take) {
    if (!this.held) return;
    const { cells, alpha } = this.held;
    this.held = null;
    clearTimeout(this.timer);
    this.timer = null;
    this.board.preview(null);
    if (take && alpha !== null) this.board.act({ act: "paint", source: blendOf(alpha) }, cells);
  }

  // ------------------------------------------------------------------ keys

  key(event, r) {
    const step = { ArrowRight: STEP, ArrowUp: STEP, ArrowLeft: -STEP, ArrowDown: -STEP, PageUp: 0.25, PageDown: -0.25 }[event.key];
    const end = { Home: 0, End: 1 }[event.key];
    if (event.key === "Escape") return this.release(false);
    if (step === undefined && end === undefined) return undefined;
    event.preventDefault();
    event.stopPropagation();
    return this.nudge(r, step, end);
  }

  nudge(r, step, end) {
    if (this.held && this.held.r !== r) this.settle();
    const cells = this.board.sliding(r);
    if (!cells.length) return;
    const shares = this.board.shares(r);
    const mean = shares.reduce((sum, share) => sum + share, 0) / (shares.length || 1);
    this.held ??= { r, cells, alpha: null };
    this.set(end ?? Math.min(2, Math.max(-1, Math.round((mean + step) / STEP) * STEP)));
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.settle(), SETTLE_MS);
  }

  settle() {
    if (this.timer) this.release(true);
  }
}
