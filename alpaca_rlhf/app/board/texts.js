// Texts of models and people on the board: formatted, as the elements that the server has made of
// their Markdown and maths, or plain, as one text node. `markup.py` says what elements there are.
const MATHML = "http://www.w3.org/1998/Math/MathML";
const SHOW_PLAIN = "alpaca.rank.plain";

let plain = storage.get(SHOW_PLAIN) === true;

/** An element of a tree, or a text node. */
function elementOf(node, inMath = false) {
  if (typeof node === "string") return document.createTextNode(node);
  const [tag, attributes, ...children] = node;
  const math = inMath || tag === "math";
  const element = math ? document.createElementNS(MATHML, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((child) => elementOf(child, math)));
  return element;
}

/** Fill the body of a text anew, which takes the marks of differing words away. */
function fill({ body, text, tree }) {
  const formatted = Boolean(tree) && !plain;
  body.classList.toggle("formatted", formatted);
  body.replaceChildren(...(formatted ? tree.map((node) => elementOf(node)) : [text]));
}

/** Let the keyboard reach tables and formulas that scroll. */
function letScroll(body) {
  for (const box of body.querySelectorAll(".scrolls")) {
    if (box.scrollWidth > box.clientWidth + 1) box.setAttribute("tabindex", "0");
    else box.removeAttribute("tabindex");
  }
}

/** Show all texts anew, after one of the switches. */
function showAgain() {
  for (const entry of ui.texts) fill(entry);
  markDifferences();
  for (const { body } of ui.texts) letScroll(body);
}

/** Show all texts as they are, or formatted; the choice is kept. */
function setPlain(on) {
  plain = on;
  storage.set(SHOW_PLAIN, on);
  ui.plain.setAttribute("aria-pressed", String(on));
  showAgain();
}
