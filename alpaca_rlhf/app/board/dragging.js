// Cards dragged by mouse or touch, in a list or side by side.
//
// A card is dragged from anywhere, and its text can be selected all the same. Peers choose either:
// with Argilla and Label Studio a press on a card always drags, so that nothing can be copied from
// an answer; others have a grip alone. Here, as with dnd-kit's delay, the place of a press decides:
// - The grip, and with a mouse all of a card but its text, drag at once.
// - A mouse on the text selects, and a finger anywhere scrolls, if it moves at once; held still
//   for a moment first, both drag. A finger that stays still for longer still selects, as always.
const DRAG_FROM_PX = 8;
const HOLD_MS = 300;
const STILL_PX = 5;
const CONTROLS = "button, input, textarea, label, summary, .scrolls";

let drag = null; // the drag under way, or the press that may become one

/** Keep a press beside the text from selecting text; the card still takes the keys. */
function pressedBeside(event, card) {
  if (event.button !== 0 || event.target.closest(`.said, ${CONTROLS}`)) return;
  event.preventDefault();
  card.focus({ preventScroll: true });
}

/** Begin a press on a card, which becomes a drag if it moves. */
function press(event, id) {
  if (locked || drag || event.button !== 0 || !event.isPrimary) return;
  if (event.target.closest(CONTROLS)) return;
  const touch = event.pointerType === "touch";
  const item = ui.cards.get(id).item;
  const items = [...ui.list.children];
  const scroller = document.scrollingElement;
  const point = ({ clientX, clientY }) =>
    ({ x: clientX + scroller.scrollLeft, y: clientY + scroller.scrollTop });
  const start = point(event);
  let latest = event;
  let held = event.target.closest(".grip") !== null || !(touch || event.target.closest(".said"));
  let slots = null; // once it moves: where the cards were
  let to = 0;
  let frameAsked = 0;

  const clock = held ? 0 : setTimeout(() => {
    held = true;
    item.classList.add("held");
    if (!touch) {
      getSelection().removeAllRanges();
      ui.list.classList.add("dragging");
    }
  }, HOLD_MS);

  const begin = () => {
    slots = items.map((other) => {
      const box = other.getBoundingClientRect();
      const corner = point({ clientX: box.left, clientY: box.top });
      return { ...corner, width: box.width, height: box.height };
    });
    getSelection().removeAllRanges();
    ui.list.classList.add("dragging");
    item.classList.add("dragged");
    try {
      item.setPointerCapture(event.pointerId);
    } catch {
      // The pointer is gone already; its end is on the way.
    }
    frameAsked = requestAnimationFrame(scroll);
  };
  /** Show the card at the pointer, and the others where they would be after a drop. */
  const follow = () => {
    const { x, y } = point(latest);
    const from = items.indexOf(item);
    const inRows = slots.some((slot) => Math.abs(slot.x - slots[0].x) > 1);
    item.style.transform = `translate(${inRows ? x - start.x : 0}px, ${y - start.y}px)`;
    to = inRows
      ? nearestSlot(slots, { x, y })
      : slots.filter((slot, at) => at !== from && slot.y + slot.height / 2 < y).length;
    const order = items.filter((other) => other !== item);
    order.splice(to, 0, item);
    order.forEach((other, at) => {
      if (other === item) return;
      const before = slots[items.indexOf(other)];
      const room = at > items.indexOf(other) ? 1 : at < items.indexOf(other) ? -1 : 0;
      const across = inRows ? slots[at].x - before.x : 0;
      const down = inRows ? slots[at].y - before.y : room * (slots[from].height + 12);
      other.style.transform = room ? `translate(${across}px, ${down}px)` : "";
    });
  };
  const scroll = () => {
    const edge = latest.clientY < 90 ? -1 : latest.clientY > innerHeight - 140 ? 1 : 0;
    if (edge) {
      scroller.scrollTop += edge * 12;
      follow();
    }
    frameAsked = requestAnimationFrame(scroll);
  };
  const move = (moved) => {
    if (moved.pointerId !== event.pointerId) return;
    latest = moved;
    const { x, y } = point(moved);
    const far = Math.hypot(x - start.x, y - start.y);
    if (!held && far > STILL_PX) return end(); // the text is selected, or the page scrolled
    if (!held || (!slots && far < DRAG_FROM_PX)) return;
    if (!slots) begin();
    follow();
  };
  const end = (ending = null) => {
    if (ending?.pointerId !== undefined && ending.pointerId !== event.pointerId) return;
    if (ending?.type === "keydown" && ending.key !== "Escape") return;
    clearTimeout(clock);
    cancelAnimationFrame(frameAsked);
    document.removeEventListener("pointermove", move);
    for (const kind of ENDS) document.removeEventListener(kind, end, true);
    drag = null;
    ui.list?.classList.remove("dragging");
    item.classList.remove("held", "dragged");
    for (const other of items) other.style.transform = "";
    if (slots && ending?.type === "pointerup" && item.isConnected) {
      change(dropped(draft.tiers, id, to), touch ? "touch" : "mouse", id);
    }
  };
  drag = {
    /** True while the page must not scroll, select or drag by itself. */
    get taken() {
      return slots !== null || held;
    },
    get moving() {
      return slots !== null;
    },
    end,
  };
  document.addEventListener("pointermove", move);
  for (const kind of ENDS) document.addEventListener(kind, end, true);
}

const ENDS = ["pointerup", "pointercancel", "keydown"];

/** Number of the place that holds a point, or is nearest to it. */
function nearestSlot(slots, { x, y }) {
  const beyond = (value, from, size) => Math.max(from - value, 0, value - from - size);
  const distances = slots.map((slot) =>
    Math.hypot(beyond(x, slot.x, slot.width), beyond(y, slot.y, slot.height)));
  return distances.indexOf(Math.min(...distances));
}

/** What the browser would do with a press by itself, kept from it while a card is dragged. */
function keepFromBrowser(list) {
  // Not passive, and there before the touch, or else the browser scrolls without asking.
  list.addEventListener("touchmove", (event) => {
    if (drag?.taken && event.cancelable) event.preventDefault();
  }, { passive: false });
  for (const kind of ["selectstart", "dragstart"]) {
    list.addEventListener(kind, (event) => {
      if (drag?.moving || (drag?.taken && kind === "dragstart")) event.preventDefault();
    });
  }
  // A finger that has stayed still has selected a word by now: that is no drag.
  list.addEventListener("contextmenu", (event) => {
    if (drag?.moving) event.preventDefault();
    else drag?.end();
  });
}
