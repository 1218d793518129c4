// What the board knows of sources, shades and layers. A source is written as in a recipe: "A", "B", "B:0.5", "zero",
// "reinit:7", "remove"; "mixed" stands for several in one cell, "" for a cell that only B has.

const RAMP = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const INK = 0.6; // share of the ramp's colour in a cell

function blendOf(alpha) {
  const rounded = Number(alpha.toFixed(4)); // 0.1 + 0.2 is written 0.3
  return rounded === 0 ? "A" : rounded === 1 ? "B" : `B:${rounded}`;
}

function shareOf(source) {
  if (source === "A" || source === "B") return source === "B" ? 1 : 0;
  return source.startsWith("B:") ? Number(source.slice(2)) : null;
}

function needsB(source) {
  return Boolean(shareOf(source)) || source === "invert";
}

function inverse(source) {
  const share = shareOf(source);
  return share === null ? source : blendOf(1 - share);
}

function markOf(source) {
  const share = shareOf(source);
  if (share === null) return source.split(":")[0] || "none";
  if (share === 0 || share === 1) return source;
  return share > 1 ? "over" : share < 0 ? "under" : "blend";
}

function sourceWords(source) {
  const [kind, value] = source.split(":");
  if (shareOf(source) !== null && value) return `blend: ${value} of B, ${Number((1 - value).toFixed(4))} of A`;
  return {
    A: "from A",
    B: "from B",
    zero: "set to zero",
    reinit: `drawn anew at random, seed ${value}`,
    remove: "its layer is removed",
    mixed: "its tensors come from different sources",
  }[kind];
}

function short(number) {
  return String(Number(number.toFixed(2)));
}

// ------------------------------------------------------------------ layers, written as in a recipe: "0-2,5"

function layersOf(text, layers) {
  const ranges = [];
  for (const piece of text.split(",")) {
    const found = piece.trim().match(/^(\d+)(?:\s*[-–]\s*(\d+))?$/);
    if (!found) return null;
    const [low, high] = [Number(found[1]), Number(found[2] ?? found[1])];
    if (low > high || high >= layers) return null;
    ranges.push([low, high]);
  }
  return ranges;
}

function layersText(ranges) {
  return ranges.map(([low, high]) => (low === high ? `${low}` : `${low}-${high}`)).join(",");
}

// ------------------------------------------------------------------ shades

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function isDark([r, g, b]) {
  return 0.299 * r + 0.587 * g + 0.114 * b < 128;
}

function shade(value, paper) {
  // more is always nearer the eye: bright on dark, dark on bright; mixed with the paper, so that the marks stay on top
  const at = Math.min(1, Math.max(0, isDark(paper) ? value : 1 - value)) * (RAMP.length - 1);
  const low = Math.floor(at);
  const high = Math.min(RAMP.length - 1, low + 1);
  const [from, to] = [rgb(RAMP[low]), rgb(RAMP[high])];
  const mixed = from.map((part, i) => INK * (part + (to[i] - part) * (at - low)) + (1 - INK) * paper[i]);
  return `rgb(${mixed.map(Math.round).join(" ")})`;
}

const papers = new Map();

function paperOf(element) {
  const probe = getComputedStyle(element).getPropertyValue("--st-background-color").trim() || "#ffffff";
  if (!papers.has(probe)) {
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.fillStyle = probe;
    papers.set(probe, rgb(canvas.fillStyle));
  }
  return papers.get(probe);
}

// ------------------------------------------------------------------ elements

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function swatch(mark, share) {
  const cell = make("span", "cell key");
  cell.dataset.s = mark;
  if (share !== undefined) cell.style.setProperty("--share", share);
  cell.append(make("span", "mark"));
  return cell;
}
