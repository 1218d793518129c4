// One answer as it grows. Model text only ever becomes text nodes: nothing in it is read as HTML, Markdown or a link.
//
// data = {passages: [{kind: "thought" | "answer", label, closed, pieces: [[kind, text, tex], ...]}], question, ended}
//   kind of a piece: "text", "formula", "display", "inserted", "deleted".
//   question: key of the question that the text answers; with `ended` it is left at the text, for whoever reads the page.
// What stands already is kept, and text is appended to its node: a selection, an opened fold and the scroll survive.

const BLOCK = 1200; // letters of a block, to the end of its line
let katex = null; // null: not asked for; a promise; then the library, or false where it cannot be had

function withKatex(then) {
  if (katex === null) {
    const folder = new URL("../../vendor/katex/", document.querySelector('script[type="module"][src]').src);
    const styles = document.createElement("link");
    styles.rel = "stylesheet";
    styles.href = new URL("katex.min.css", folder).href;
    document.head.appendChild(styles);
    katex = import(new URL("katex.min.js", folder).href).then(
      () => (katex = globalThis.katex || false),
      () => (katex = false),
    );
  }
  if (katex instanceof Promise) katex.then(() => katex && then(katex));
  else if (katex) then(katex);
}

function formula(tex, source, display) {
  const place = document.createElement("span");
  place.className = display ? "sfn-display" : "sfn-formula";
  place.textContent = source; // what stays where the formula cannot be set
  withKatex((library) => {
    const set = document.createElement("span");
    try {
      library.render(tex, set, {
        displayMode: display, throwOnError: true, trust: false, strict: "ignore", maxSize: 20, maxExpand: 300,
      });
      place.replaceChildren(set);
      place.title = source;
    } catch (error) {
      place.classList.add("sfn-broken");
      place.title = "This formula cannot be set; it is shown as it was written.";
    }
  });
  return place;
}

function made([kind, text, tex]) {
  if (kind === "text") return document.createTextNode(text);
  if (kind === "formula" || kind === "display") return formula(tex, text, kind === "display");
  const marked = document.createElement(kind === "inserted" ? "ins" : "del");
  marked.appendChild(document.createTextNode(text));
  return marked;
}

function blocks(pieces) {
  // Pieces in blocks of whole lines, so that a browser lays out anew only the last one of a long text that grows.
  const found = [[]];
  let letters = 0;
  for (const [kind, text, tex] of pieces) {
    let rest = text;
    while (kind !== "formula" && kind !== "display" && letters + rest.length > BLOCK) {
      const at = rest.indexOf("\n", Math.max(0, BLOCK - letters));
      if (at < 0) break;
      found[found.length - 1].push([kind, rest.slice(0, at + 1), ""]);
      found.push([]);
      rest = rest.slice(at + 1);
      letters = 0;
    }
    if (rest) found[found.length - 1].push([kind, rest, tex]);
    letters += rest.length;
  }
  return found;
}

function write(place, pieces) {
  const lines = blocks(pieces);
  lines.forEach((block, at) => {
    if (!place.children[at]) place.appendChild(document.createElement("div"));
    fill(place.children[at], block);
  });
  while (place.children.length > lines.length) place.lastChild.remove();
}

function fill(place, pieces) {
  pieces.forEach((piece, at) => {
    const node = place.childNodes[at];
    const [kind, text] = piece;
    if (node && node.sfn && node.sfn[0] === kind && kind !== "formula" && kind !== "display") {
      const letters = kind === "text" ? node : node.firstChild;
      const old = node.sfn[1];
      if (text.startsWith(old)) letters.appendData(text.slice(old.length));
      else letters.data = text;
    } else if (!(node && node.sfn && node.sfn[0] === kind && node.sfn[1] === text)) {
      const fresh = made(piece);
      if (node) place.replaceChild(fresh, node);
      else place.appendChild(fresh);
    }
    place.childNodes[at].sfn = piece;
  });
  while (place.childNodes.length > pieces.length) place.lastChild.remove();
}

function passage(kind) {
  if (kind === "answer") {
    const place = document.createElement("div");
    place.className = "sfn-words";
    return place;
  }
  const fold = document.createElement("details");
  fold.className = "sfn-thought";
  const label = document.createElement("summary");
  label.onclick = () => { fold.chosen = true; }; // from now on it stays as the reader left it
  const place = document.createElement("div");
  place.className = "sfn-words";
  fold.append(label, place);
  return fold;
}

export default function (component) {
  const { data, parentElement } = component;
  const root = parentElement.querySelector(".sfn-said");
  data.passages.forEach((given, at) => {
    let place = root.children[at];
    if (!place || place.kind !== given.kind) {
      const fresh = passage(given.kind);
      fresh.kind = given.kind;
      if (place) root.replaceChild(fresh, place);
      else root.appendChild(fresh);
      place = fresh;
    }
    if (given.kind === "thought") {
      if (place.firstChild.textContent !== given.label) place.firstChild.textContent = given.label;
      if (!place.chosen) place.open = !given.closed; // in sight while it is thought, folded once it is over
      write(place.lastChild, given.pieces);
    } else write(place, given.pieces);
  });
  while (root.children.length > data.passages.length) root.lastChild.remove();
  root.dataset.question = data.question;
  root.dataset.ended = data.ended;
}
