"""Actions that a ranking takes on the board, found with its own functions, and the time from a
submit to the next task. `python -m tests.prove board` writes them down."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from alpaca_rlhf.app import board

SOURCE = Path(board.__file__).parent / "board.js"
N_ANSWERS = 4
KEYS_AT_MOST = 2.6
"""Mean number of keys, to one decimal, that bring four answers into an order; one more submits."""
DRAGS_AT_MOST = 1.6
"""Mean number of drags, to one decimal, that do so."""
NEXT_TASK_MS = 200
"""Milliseconds from a submit to the next task on screen, at the median."""

_SEARCH = """
const actions = {
  keys(order, focus) {
    const cards = flat(order);
    const at = cards.indexOf(focus);
    const there = (key, id) => [key, order, id];
    const moved = (key, tiers) => [key, tiers, focus];
    return [
      ...cards.map((_, i) => moved(String(i + 1), placed(order, focus, i + 1))),
      moved("=", tied(order, focus)),
      moved("Shift+ArrowUp", stepped(order, focus, -1)),
      moved("Shift+ArrowDown", stepped(order, focus, 1)),
      there("ArrowUp", cards[Math.max(at - 1, 0)]),
      there("ArrowDown", cards[Math.min(at + 1, cards.length - 1)]),
      there("Home", cards[0]),
      there("End", cards[cards.length - 1]),
    ];
  },
  drags(order, focus) {
    const cards = flat(order);
    const places = [...cards.keys()];
    const to = (id) => places.map((i) => [`${id} to ${i}`, dropped(order, id, i), focus]);
    return cards.flatMap(to);
  },
};
// The fewest actions from the order as shown, with its first answer in focus, to every order:
// breadth first.
const shown = ids.map((id) => [id]);
const found = {};
for (const [kind, next] of Object.entries(actions)) {
  const seen = new Map([[JSON.stringify([shown, ids[0]]), true]]);
  const waiting = [[shown, ids[0], []]];
  const shortest = {};
  while (waiting.length) {
    const [order, focus, path] = waiting.shift();
    // Within a tie the cards may stand in any order.
    shortest[order.map((tier) => [...tier].sort().join("=")).join(">")] ??= path;
    for (const [action, tiers, to] of next(order, focus)) {
      const state = JSON.stringify([tiers, to]);
      if (seen.has(state)) continue;
      seen.set(state, true);
      waiting.push([tiers, to, [...path, action]]);
    }
  }
  found[kind] = shortest;
}
return found;
"""
_WATCH = """() => {
  const root = document.querySelector(".rank");
  const task = root.dataset.task;
  let began = 0;
  window.nextTaskMs = undefined;
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !began) began = performance.now();
  }, { capture: true });
  new MutationObserver((_, observer) => {
    if (root.dataset.task === task || root.getAttribute("aria-busy") !== "false") return;
    observer.disconnect();
    // The second frame begins once the first one has been painted.
    const note = () => { window.nextTaskMs = performance.now() - began; };
    requestAnimationFrame(() => requestAnimationFrame(note));
  }).observe(root, { attributes: true });
}"""
_AT_ITS_TOP = """() => {
  const card = document.querySelector(".card");
  const top = document.querySelector(".rank").getBoundingClientRect().top;
  return document.activeElement === card && top >= 0 && top < innerHeight;
}"""


def shortest_actions(page: Any) -> dict[str, dict[str, list[str]]]:
    """The fewest keys, and the fewest drags, to every order of the answers A to D.

    Returns:
        `keys` and `drags`: each order, such as `B>A=C>D`, with its actions.
    """
    source = SOURCE.read_text(encoding="utf-8")
    begin = source.index("// --- the order: lists of lists")
    functions = source[begin : source.index("// --- drafts:")]
    ids = [chr(ord("A") + i) for i in range(N_ANSWERS)]
    found: dict[str, dict[str, list[str]]] = page.evaluate(
        f"(ids) => {{ {functions} {_SEARCH} }}", ids
    )
    return found


def strict_orders() -> list[str]:
    """The 24 orders without ties."""
    letters = (chr(ord("A") + i) for i in range(N_ANSWERS))
    return [">".join(order) for order in itertools.permutations(letters)]


def mean_actions(actions: dict[str, list[str]], orders: list[str]) -> float:
    """The mean number of actions over some orders."""
    return sum(len(actions[order]) for order in orders) / len(orders)


def are_few(keys: float, drags: float) -> bool:
    """True if mean numbers of keys and drags are no more than the board may ask for."""
    return round(keys, 1) <= KEYS_AT_MOST and round(drags, 1) <= DRAGS_AT_MOST


def rank_by_keys(page: Any, actions: list[str]) -> float:
    """Press the keys on the board, submit, and wait for the next task.

    Returns:
        Milliseconds from the submit to the first picture of the next task, which is at its top with
        its first answer in focus.
    """
    for key in actions:
        page.keyboard.press(key)
    page.evaluate(_WATCH)
    page.keyboard.press("Control+Enter")
    if not actions:  # an order that nobody has touched is confirmed
        page.keyboard.press("Enter")
    page.wait_for_function("window.nextTaskMs !== undefined")
    milliseconds = float(page.evaluate("window.nextTaskMs"))
    assert page.evaluate(_AT_ITS_TOP), "the next task is at its top, and takes keys"
    return milliseconds
