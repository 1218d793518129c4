// A line of text whose edits are events: Python is told what a person wrote, once, and never what the box merely holds.
//
// data = {text, label, placeholder, ack: [instance, seq]}. An edit is {instance, seq, text}; until Python has acknowledged
// it, the box keeps what was written.

const boxes = new WeakMap();

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const input = parentElement.querySelector("input");
  let box = boxes.get(input);
  if (!box) {
    box = { instance: Math.random().toString(36).slice(2, 12), seq: 0, settled: null };
    boxes.set(input, box);
  }
  input.placeholder = data.placeholder;
  input.setAttribute("aria-label", data.label);
  const acknowledged = data.ack[0] === box.instance ? data.ack[1] : 0;
  const beingWritten = box.settled !== null && input.value !== box.settled;
  if (box.seq <= acknowledged && (data.text !== box.settled || !beingWritten)) {
    box.settled = data.text;
    if (input.value !== data.text) input.value = data.text;
  }
  const commit = () => {
    if (input.value === box.settled) return;
    box.settled = input.value;
    box.seq += 1;
    setTriggerValue("edit", { instance: box.instance, seq: box.seq, text: input.value });
  };
  input.onblur = commit;
  input.onkeydown = (event) => {
    if (event.key === "Enter") commit();
    if (event.key === "Escape") input.value = box.settled;
  };
}
