// Words that differ between near-equal answers: each answer is compared with the one that shares
// most words with it, as it is shown, formatted or plain.
const MARK_WORDS = "alpaca.rank.differences";
const SHARED_FROM = 0.6; // share of the words, in order, from which two answers are near-equal
const MAX_COMPARED_CHARS = 20000;
const MAX_CELLS = 4.5e6; // of one table: two answers of 2,000 Chinese characters, some ten ms
const WORD =
  /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}\p{N}_]+|\S/gu;

/** The words within an element, each with its text node and place; a formula is one word. */
function wordsIn(node, words = []) {
  if (node.nodeType === Node.TEXT_NODE) {
    for (const match of node.data.matchAll(WORD)) {
      words.push({ text: match[0], node, start: match.index, end: match.index + match[0].length });
    }
  } else if (node.localName === "math") words.push({ text: node.getAttribute("alttext"), node });
  else for (const child of node.childNodes) wordsIn(child, words);
  return words;
}

/** Share of the words that two lists have in common, in any order: 0 to 1. */
function sharedWords(first, second) {
  const counts = new Map();
  for (const { text } of first) counts.set(text, (counts.get(text) || 0) + 1);
  let shared = 0;
  for (const { text } of second) {
    const left = counts.get(text) || 0;
    if (left) {
      counts.set(text, left - 1);
      shared++;
    }
  }
  return (2 * shared) / (first.length + second.length || 1);
}

/**
 * The words of a longest common subsequence of two lists, as two sets; null if that takes too long.
 */
function commonWords(first, second) {
  const common = [new Set(), new Set()];
  const keep = (a, b) => {
    common[0].add(first[a]);
    common[1].add(second[b]);
  };
  // 1. What both begin and end with.
  const shorter = Math.min(first.length, second.length);
  let head = 0;
  for (; head < shorter && first[head].text === second[head].text; head++) keep(head, head);
  let tail = 0;
  while (
    tail < shorter - head &&
    first[first.length - 1 - tail].text === second[second.length - 1 - tail].text
  ) {
    keep(first.length - 1 - tail, second.length - 1 - tail);
    tail++;
  }
  // 2. A table of the longest common subsequences of what lies between, from its end.
  const rows = first.length - head - tail;
  const columns = second.length - head - tail;
  const width = columns + 1;
  if ((rows + 1) * width > MAX_CELLS) return null;
  const longest = new Uint16Array((rows + 1) * width);
  for (let a = rows - 1; a >= 0; a--) {
    for (let b = columns - 1; b >= 0; b--) {
      const at = a * width + b;
      longest[at] = first[head + a].text === second[head + b].text
        ? longest[at + width + 1] + 1
        : Math.max(longest[at + width], longest[at + 1]);
    }
  }
  // 3. One of the longest, read from the table.
  for (let a = 0, b = 0; a < rows && b < columns;) {
    if (first[head + a].text === second[head + b].text) keep(head + a++, head + b++);
    else if (longest[(a + 1) * width + b] >= longest[a * width + b + 1]) a++;
    else b++;
  }
  return common;
}

/** Mark the words that are not in `common`, neighbours of one text node together. */
function markOthers(words, common) {
  const runs = [];
  let run = null;
  for (const word of words) {
    if (common.has(word)) run = null;
    else if (word.start === undefined) word.node.parentElement.classList.add("differs");
    else if (run && run.node === word.node) run.end = word.end;
    else runs.push(run = { ...word });
  }
  // From the last to the first, so that the places of those before stay as they are.
  for (const { node, start, end } of runs.reverse()) {
    const rest = node.splitText(start);
    rest.splitText(end - start);
    const mark = document.createElement("mark");
    rest.replaceWith(mark);
    mark.append(rest);
  }
}

let marksOn = storage.get(MARK_WORDS) !== false;

/** Mark the words of each answer that differ from the answer most like it. */
function markDifferences() {
  const cards = task.answers.map((answer) => ui.cards.get(answer.id));
  for (const { note } of cards) note.hidden = true;
  if (!marksOn) return;
  const words = cards.map(({ text }) =>
    text.text.length > MAX_COMPARED_CHARS ? [] : wordsIn(text.body));
  const common = new Map(); // of a pair, by the numbers of its answers
  const comparisons = cards.map((card, at) => {
    // 1. The answer that shares most words with this one.
    let nearest = -1;
    let most = SHARED_FROM;
    words.forEach((others, other) => {
      const shared = other === at ? 0 : sharedWords(words[at], others);
      if (shared < most || (shared === most && nearest >= 0)) return;
      most = shared;
      nearest = other;
    });
    if (nearest < 0) return null;
    // 2. What they share in the same order, looked up where the other has asked before.
    const [low, high] = [Math.min(at, nearest), Math.max(at, nearest)];
    const pair = `${low} ${high}`;
    if (!common.has(pair)) common.set(pair, commonWords(words[low], words[high]));
    const shared = common.get(pair)?.[at === low ? 0 : 1];
    const n = words[low].length + words[high].length;
    return shared && (2 * shared.size) / n >= SHARED_FROM ? { shared, nearest } : null;
  });
  // 3. Marks, once all is compared: they change the text nodes.
  comparisons.forEach((comparison, at) => {
    if (!comparison) return;
    const { shared, nearest } = comparison;
    const letter = cards[nearest].letter;
    const here = words[at].length - shared.size;
    const there = words[nearest].length - shared.size;
    const key = here ? "differs" : there ? "differs_more" : "differs_none";
    cards[at].note.textContent = w(key, { letter });
    cards[at].note.hidden = false;
    markOthers(words[at], shared);
  });
}

/** Mark differing words, or no more; the choice is kept. */
function setMarks(on) {
  marksOn = on;
  storage.set(MARK_WORDS, on);
  ui.marks.setAttribute("aria-pressed", String(on));
  showAgain();
}
