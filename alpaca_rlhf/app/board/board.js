// The rank board. Gradio runs this as the body of a function of `element` and `props`.
// Whatever a model or a person wrote becomes text nodes here, in elements of a short list.
"use strict";

const TEXTS = props.texts;
const COMMAND = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘" : "Ctrl";
const LETTERS = "ABCDEFGHI";
const ANSWER_WITHIN_MS = 15000;
const WAITS_MS = [1000, 2000, 4000, 8000, 15000];
const DRAFTS = "alpaca.rank.draft.";
const RUN = window.alpacaRun || ""; // numbers of tasks mean other tasks in another run
const MONTH_MS = 30 * 24 * 3600 * 1000;
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const root = element.querySelector(".rank");

let language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh-CN" : "en";
let annotator = null; // number, known from the first reply
let task = null; // what is on screen
let ahead = []; // prefetched tasks
let draft = null; // the annotator's unsaved verdict on `task`
let locked = true; // while a request that changes the task is under way
let last = []; // submitted verdicts, newest last, for the undo
let renewed = 0;
let progressKnown = null;
let guidelinesAsked = 0; // the newest version that the page was asked to show
let refill = ""; // the command that fills the queue, which only admins are told
let ui = {};

// --- helpers ---------------------------------------------------------------------------

function w(key, values = {}) {
  const text = TEXTS[language][key];
  return text.replace(/\{(\w+)\}/g, (placeholder, name) =>
    name in values ? String(values[name]) : placeholder);
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function button(kind, text, onclick, attributes = {}) {
  return make("button", { type: "button", class: kind, onclick, ...attributes }, text);
}

function sleep(ms) {
  return new Promise((done) => setTimeout(done, ms));
}

const storage = {
  get(key) {
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(key, JSON.stringify(value));
    } catch {
      // A browser that keeps nothing: the page still works, without drafts.
    }
  },
  drop(key) {
    try {
      localStorage.removeItem(key);
    } catch {
      // As above.
    }
  },
  keys(prefix) {
    try {
      return Object.keys(localStorage).filter((key) => key.startsWith(prefix));
    } catch {
      return [];
    }
  },
};

// --- the order: lists of lists, best first ----------------------------------------------------

const flat = (tiers) => tiers.flat();
const tierOf = (tiers, id) => tiers.findIndex((tier) => tier.includes(id));
const without = (tiers, id) =>
  tiers.map((tier) => tier.filter((other) => other !== id)).filter((tier) => tier.length);

/** `id` at a place, which is a number of a tier, alone. */
function placed(tiers, id, place) {
  const rest = without(tiers, id);
  rest.splice(Math.min(place - 1, rest.length), 0, [id]);
  return rest;
}

/** `id` one step up (-1) or down (1); out of a tie first. */
function stepped(tiers, id, way) {
  const at = tierOf(tiers, id);
  const alone = tiers[at].length === 1;
  const to = alone ? at + way : way < 0 ? at : at + 1;
  if (to < 0 || (alone && to >= tiers.length)) return tiers;
  const rest = without(tiers, id);
  rest.splice(to, 0, [id]);
  return rest;
}

/** `id` tied with the card above it, or no more if it is. */
function tied(tiers, id) {
  const at = tierOf(tiers, id);
  const among = tiers[at].indexOf(id);
  if (among > 0) {
    const rest = without(tiers, id);
    rest.splice(at + 1, 0, [id]);
    return rest;
  }
  if (at === 0) return tiers;
  const joined = tiers.map((tier) => tier.filter((other) => other !== id));
  joined[at - 1] = [...joined[at - 1], id];
  return joined.filter((tier) => tier.length);
}

/** `id` between two cards of the list; within a tie it joins it. */
function dropped(tiers, id, index) {
  if (flat(tiers).indexOf(id) === index) return tiers;
  const rest = without(tiers, id);
  let start = 0;
  for (let at = 0; at < rest.length; at++) {
    if (index <= start) {
      rest.splice(at, 0, [id]);
      return rest;
    }
    if (index < start + rest[at].length) {
      rest[at] = [...rest[at].slice(0, index - start), id, ...rest[at].slice(index - start)];
      return rest;
    }
    start += rest[at].length;
  }
  return [...rest, [id]];
}

// --- drafts: work that is not on the server yet is kept in the browser ---------------------------------

const draftsHere = () => `${DRAFTS}${RUN}.${annotator}.`;
const draftKey = (aTask) => `${draftsHere()}${aTask.id}.${aTask.revision}`;
const lastKey = () => `alpaca.rank.last.${RUN}.${annotator}`;

/** A new draft of a task; after an undo with the comment and the like of `before`. */
function newDraft(aTask, before) {
  return {
    tiers: aTask.tiers.length ? aTask.tiers : aTask.answers.map((answer) => [answer.id]),
    criteria: aTask.criteria,
    comment: before?.comment || "",
    allBad: Boolean(before?.allBad),
    better: { ...aTask.better },
    tiedAsBad: false,
    methods: aTask.tiers.length ? before?.methods || ["mixed"] : [],
    sent: null,
  };
}

function storedDraft(aTask) {
  const stored = storage.get(draftKey(aTask));
  const ids = aTask.answers.map((answer) => answer.id).sort().join();
  const valid =
    stored && Array.isArray(stored.tiers) && flat(stored.tiers).sort().join() === ids &&
    Array.isArray(stored.methods) && typeof stored.criteria === "object";
  if (valid) stored.better ??= { text: "", from: "" }; // a draft of an earlier version
  return valid ? stored : null;
}

function save() {
  if (task) storage.set(draftKey(task), { ...draft, at: Date.now() });
}

const hasStars = () => Object.values(draft.criteria).some((stars) => Object.keys(stars).length);
const moved = () => draft.methods.length > 0 || draft.tiedAsBad;
const worked = () =>
  moved() || draft.allBad || draft.comment.trim() !== "" || draft.better.text.trim() !== "" ||
  hasStars();

// --- the server ---------------------------------------------------------------------------------

class Lost extends Error {}

const RETRIED = ["signed_out", "full"]; // problems after which the same message is sent again

/** One message and its reply; `Lost` where none came. */
async function ask(action, fields = {}) {
  const config = window.gradio_config || {};
  const home = new URL(config.root || "/", location.href).pathname.replace(/\/$/, "");
  const giveUp = new AbortController();
  const clock = setTimeout(() => giveUp.abort(), ANSWER_WITHIN_MS);
  try {
    const response = await fetch(`${home}${config.api_prefix || "/gradio_api"}/run/${props.endpoint}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ data: [JSON.stringify({ do: action, ...fields })] }),
      signal: giveUp.signal,
    });
    const away = response.status === 401 || response.status === 403 || response.redirected;
    if (away) return { problem: "signed_out", message: w("problem.signed_out") };
    if (response.status === 409) return { problem: "other_run", message: w("problem.other_run") };
    if (!response.ok) throw new Lost(String(response.status));
    const reply = JSON.parse((await response.json()).data[0]);
    if (reply.annotator !== undefined) know(reply);
    refill = reply.refill ?? refill;
    return reply;
  } catch (error) {
    throw error instanceof Lost ? error : new Lost(String(error));
  } finally {
    clearTimeout(clock);
  }
}

function know(reply) {
  if (annotator !== reply.annotator) {
    annotator = reply.annotator;
    refill = "";
    last = storage.get(lastKey()) || [];
    for (const key of storage.keys(DRAFTS)) {
      if (!(storage.get(key)?.at > Date.now() - MONTH_MS)) storage.drop(key);
    }
  }
  if (language !== reply.language) {
    language = reply.language;
    frame();
  }
  showGuidelines(reply.guideline);
}

// --- the guidelines above the board: a verdict names the version that is on screen ------------------

function guidelinesShown() {
  const mark = document.querySelector("#guidelines-version [data-version]");
  return mark ? Number(mark.dataset.version) : null;
}

/** Have the page show the newest guidelines, once for each version. */
function showGuidelines(version) {
  const shown = guidelinesShown(); // null until the page has shown any
  if (shown === null || !(version > shown) || version === guidelinesAsked) return;
  guidelinesAsked = version;
  trigger("submit", {});
  // A little later: the reply that tells of them may also say that a verdict was saved.
  setTimeout(() => toast(w("guidelines_changed", { n: version })), 2000);
}

/** Retry until the server answers. A message may arrive twice: the server acts on it once. */
async function insist(action, fields = {}) {
  lock(true);
  for (let tries = 0; ; tries++) {
    let problem;
    try {
      const reply = await ask(action, fields);
      if (!RETRIED.includes(reply.problem)) {
        banner(null);
        lock(false);
        return reply;
      }
      problem = reply.message;
    } catch (error) {
      if (!(error instanceof Lost)) throw error;
      problem = w(action === "submit" ? "lost.submit" : "lost");
    }
    const signedOut = problem === w("problem.signed_out");
    await new Promise((again) => {
      const clock = setTimeout(again, WAITS_MS[Math.min(tries, WAITS_MS.length - 1)]);
      const now = () => {
        clearTimeout(clock);
        again();
      };
      banner(problem, [
        signedOut ? button("plain", w("sign_in"), () => location.reload()) : null,
        button("plain", w("try_now"), now),
      ]);
    });
  }
}

/** One attempt at a request that nobody waits for. */
async function quietly(action, fields = {}) {
  try {
    return await ask(action, fields);
  } catch {
    return null;
  }
}

async function progress() {
  const reply = await quietly("progress");
  if (!reply || reply.problem) return;
  progressKnown = reply;
  paintProgress();
}

async function prefetch() {
  if (!task || ahead.length) return;
  const reply = await quietly("next", { holding: [task.id] });
  const next = reply?.task;
  if (!next || next.id === task?.id || ahead.some((waiting) => waiting.id === next.id)) return;
  ahead.push(next);
}

function active() {
  if (!task || locked || !onScreen() || Date.now() - renewed < (task.lease_s * 1000) / 5) return;
  renewed = Date.now();
  quietly("renew", { task: task.id, holding: ahead.map((waiting) => waiting.id) });
}

// --- from task to task ----------------------------------------------------------------------------

async function advance(message = "") {
  const prefetched = ahead.shift();
  if (prefetched) return show(prefetched, message);
  const reply = await insist("next", { holding: [] });
  if (reply.problem) return refused(reply);
  if (reply.task) show(reply.task, message);
  else empty(message);
}

function show(next, message = "", before = null) {
  task = next;
  const stored = storedDraft(next);
  draft = stored || newDraft(next, before);
  if (before) save();
  renewed = Date.now();
  lock(false);
  frame();
  if (message) toast(message);
  if (stored && !stored.sent) toast(w("draft_restored"));
  toTop();
  if (stored?.sent) return deliver();
  startClock(next);
  prefetch().then(progress);
}

/** Show the top of a new task, with its first answer in focus, so that the keys work at once. */
function toTop() {
  // The button that was pressed is gone or disabled, which leaves the focus to the page. Whoever
  // is elsewhere, such as in a field of the page around the board, stays there.
  const free = !document.activeElement || document.activeElement === document.body;
  if (!onScreen() || !(free || root.contains(document.activeElement))) return;
  ui.cards.values().next().value.card.focus({ preventScroll: true });
  if (root.getBoundingClientRect().top < 0) root.scrollIntoView({ block: "start" });
}

/** Start the clock of a task; one that somebody else got meanwhile is replaced. */
async function startClock(started) {
  const reply = await quietly("renew", { task: started.id, shown: true });
  const gone = reply && ["done", "unknown", "not_yours"].includes(reply.problem);
  if (!gone || task !== started || worked() || locked) return;
  forget(started);
  task = null;
  advance(w("given_away"));
}

function forget(aTask) {
  storage.drop(draftKey(aTask));
}

function refused(reply) {
  if (reply.problem === "other_run") {
    return banner(reply.message, [button("plain", w("reload"), () => location.reload())]);
  }
  banner(reply.message, [
    button("plain", w("next_task"), () => {
      banner(null);
      ahead = [];
      task = null;
      advance();
    }),
  ]);
}

function empty(message = "") {
  task = draft = null;
  lock(false);
  frame();
  if (message) toast(message);
  progress();
  const panel = ui.empty;
  setTimeout(async () => {
    while (ui.empty === panel && panel.isConnected) {
      if (onScreen() && !locked) {
        const reply = await quietly("next", { holding: [] });
        if (reply?.task && ui.empty === panel) return show(reply.task, w("new_task"));
      }
      await sleep(props.poll_s * 1000);
    }
  }, props.poll_s * 1000);
}

const onScreen = () => root.isConnected && root.offsetParent !== null && !document.hidden;

async function submit(confirmed = false) {
  if (locked || !task) return;
  if (!moved() && !confirmed) return confirmOrder(true);
  const better = draft.better.text.trim();
  if (better && task.answers.some((answer) => answer.text.trim() === better)) {
    openBetter();
    return toast(w("better_same"));
  }
  const methods = [...new Set(draft.methods)];
  draft.sent = {
    task: task.id,
    revision: task.revision,
    tiers: draft.tiers,
    criteria: draft.criteria,
    all_bad: draft.allBad,
    comment: draft.comment.trim(),
    better,
    better_from: better ? draft.better.from : "",
    guideline: guidelinesShown(),
    method: methods.length > 1 ? "mixed" : methods[0] || (draft.tiedAsBad ? "buttons" : "as_shown"),
  };
  save();
  confirmOrder(false);
  await deliver();
}

/** Send the submitted verdict until the server acknowledges it. */
async function deliver() {
  const submitted = task;
  const reply = await insist("submit", draft.sent);
  if (reply.problem === "other_run") return refused(reply); // it is sent once this run is back
  if (reply.problem) {
    draft.sent = null;
    save();
    if (reply.problem === "other_verdict") forget(submitted); // it is ranked, and not by this
    return refused(reply);
  }
  forget(submitted);
  last = last.filter((entry) => entry.task !== submitted.id).slice(-19);
  const { comment, allBad, methods } = draft;
  last.push({ task: submitted.id, comment, allBad, methods });
  storage.set(lastKey(), last);
  task = null;
  await advance(w(reply.already ? "already_saved" : "saved"));
}

/** Send verdicts that an earlier page on this run submitted without an acknowledgement. */
async function leftovers() {
  for (let tries = 0; root.isConnected; tries++) {
    let waiting = false;
    for (const key of storage.keys(draftsHere())) {
      const sent = storage.get(key)?.sent;
      if (!sent || (task && key === draftKey(task))) continue;
      const reply = await quietly("submit", sent);
      if (reply?.problem === "other_run") return;
      const later = !reply || RETRIED.includes(reply.problem);
      waiting ||= later;
      if (later) continue;
      storage.drop(key);
      toast(reply.problem ? reply.message : w(reply.already ? "already_saved" : "saved"));
    }
    if (!waiting) return;
    await sleep(WAITS_MS[Math.min(tries, WAITS_MS.length - 1)]);
  }
}

async function undo() {
  if (locked) return;
  return reopen(last.pop());
}

/** Take a verdict back, the newest where none is named, and show its task again. */
async function reopen(before) {
  // Without a number the server takes the newest, so that message is never sent twice.
  const reply = before
    ? await insist("undo", { task: before.task })
    : await quietly("undo", { task: 0 });
  if (reply?.problem !== "other_run") storage.set(lastKey(), last);
  if (!reply) return toast(w("lost"));
  if (reply.problem) return toast(reply.message);
  if (!reply.task) return toast(w("nothing_to_undo"));
  const reopened = reply.task;
  if (task && task.id !== reopened.id) ahead.unshift(task);
  ahead = ahead.filter((waiting) => waiting.id !== reopened.id);
  show(reopened, w("undone"), before || {});
}

/** The annotator's own verdicts; each may be opened again and changed. */
async function ownVerdicts() {
  if (locked) return;
  const list = make("ol", { class: "own" });
  const more = button("plain", w("mine_older"), () => fill());
  const close = button("plain", w("close"), () => box.close());
  const back = document.activeElement;
  const box = make("dialog", { class: "sheet", "aria-labelledby": "rank-own-title" },
    make("h3", { id: "rank-own-title", tabindex: -1 }, w("mine")),
    make("p", {}, w("mine_text")), list,
    make("div", { class: "row end" }, more, close));
  let before = null;
  const letters = (tiers) =>
    tiers.map((tier) => tier.map((at) => LETTERS[at]).join(" = ")).join(" > ");
  const fill = async () => {
    const reply = await quietly("mine", { before });
    if (!reply || reply.problem) return toast(reply?.message || w("lost"));
    more.hidden = !reply.more;
    if (!before && !reply.verdicts.length) list.append(make("li", { class: "soft" }, w("mine_none")));
    for (const verdict of reply.verdicts) {
      before = verdict.ranking;
      const revise = button("plain", w("mine_revise"), () => {
        box.close();
        last = last.filter((entry) => entry.task !== verdict.task);
        reopen({ task: verdict.task, comment: verdict.comment, allBad: verdict.all_bad });
      });
      list.append(make("li", {},
        make("div", { class: "said clip" }, verdict.prompt),
        make("div", { class: "said clip soft" }, verdict.best.join("\n")),
        make("div", { class: "row" },
          make("span", { class: "soft" }, letters(verdict.tiers), " · ",
            new Date(verdict.at_ms).toLocaleString(language)),
          make("span", { class: "grow" }), revise)));
    }
  };
  box.addEventListener("close", () => {
    box.remove();
    if (back?.isConnected) back.focus({ preventScroll: true });
  });
  root.append(box);
  box.showModal();
  box.querySelector("h3").focus();
  await fill();
}

async function leave(action, fields, message) {
  const abandoned = task;
  const reply = await insist(action, { task: abandoned.id, ...fields });
  if (reply.problem) return refused(reply);
  forget(abandoned);
  task = null;
  await advance(message);
}

function skip() {
  if (locked || !task) return;
  if (!worked()) return leave("skip", {}, w("skipped"));
  const why = make("input", { type: "text", maxlength: props.limits.reason, class: "field" });
  sheet(w("skip_title"), [
    make("p", {}, w("skip_loses")),
    make("label", { class: "stack" }, w("skip_reason"), why),
  ], w("skip_yes"), () => leave("skip", { reason: why.value.trim() }, w("skipped")));
}

function flag() {
  if (locked || !task) return;
  const pick = (name, options, picked) =>
    options.map(([value, text]) =>
      make("label", { class: "choice" },
        make("input", {
          type: "radio", name: `${props.endpoint}-${name}`, value, checked: value === picked,
          onchange: () => missing.replaceChildren(),
        }),
        make("span", {}, text)));
  const missing = make("p", { class: "missing", role: "alert" });
  const answers = task.answers.map((answer, at) => [answer.id, w("answer", { letter: LETTERS[at] })]);
  const what = make("fieldset", {}, make("legend", {}, w("flag_what")),
    ...pick("what", [["", w("flag_prompt")], ...answers], ""));
  // No reason is picked beforehand: whoever presses on in a hurry would give one they do not mean.
  const why = make("fieldset", {}, make("legend", {}, w("flag_why")),
    ...pick("why", props.reasons.map((reason) => [reason, w(`reason.${reason}`)])));
  const more = make("textarea", { rows: 2, maxlength: props.limits.comment, class: "field" });
  const chosen = (group) => group.querySelector("input:checked")?.value;
  sheet(w("flag_title"), [
    make("p", {}, w("flag_means")), what, why, missing,
    make("label", { class: "stack" }, w("flag_more"), more),
  ], w("flag_yes"), () => {
    const reason = chosen(why);
    if (!reason) {
      missing.textContent = w("flag_reason_missing");
      why.querySelector("input").focus();
      return false;
    }
    return leave("flag", { completion: chosen(what), reason, words: more.value.trim() }, w("flagged"));
  });
}

/** A dialog with one thing to do; it stays open where `act` returns false. */
function sheet(title, content, yes, act) {
  const close = () => box.close();
  const back = document.activeElement;
  const box = make("dialog", { class: "sheet", "aria-labelledby": "rank-sheet-title" },
    make("form", {
      method: "dialog",
      onsubmit: (event) => {
        if (act() === false) event.preventDefault();
      },
    },
      make("h3", { id: "rank-sheet-title" }, title),
      ...content,
      make("div", { class: "row end" },
        button("plain", w("cancel"), close),
        make("button", { type: "submit", class: "main" }, yes))));
  box.addEventListener("close", () => {
    box.remove();
    if (back?.isConnected) back.focus({ preventScroll: true });
  });
  root.append(box);
  box.showModal();
}

// --- changing the order -----------------------------------------------------------------------------

function change(tiers, method, id) {
  if (locked) return;
  if (JSON.stringify(tiers) === JSON.stringify(draft.tiers)) {
    tell(w("no_move"));
    return;
  }
  draft.tiers = tiers;
  draft.tiedAsBad = false;
  if (!draft.methods.includes(method)) draft.methods.push(method);
  confirmOrder(false);
  save();
  paint();
  const card = ui.cards.get(id).card;
  if (!card.contains(document.activeElement)) card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest" });
  tell(card.getAttribute("aria-label"));
}

function allBad() {
  if (locked || !task) return;
  draft.allBad = !draft.allBad;
  const ids = task.answers.map((answer) => answer.id);
  if (draft.allBad && !moved()) {
    draft.tiedAsBad = true;
    draft.tiers = [ids];
    toast(w("all_bad_tied"));
  } else if (!draft.allBad && draft.tiedAsBad) {
    draft.tiedAsBad = false;
    draft.tiers = ids.map((id) => [id]);
  }
  confirmOrder(false);
  save();
  paint();
}

function rate(id, name, value) {
  if (locked) return paintStars(id);
  const stars = { ...(draft.criteria[id] || {}) };
  if (value) stars[name] = value;
  else delete stars[name];
  draft.criteria = { ...draft.criteria, [id]: stars };
  save();
  paintStars(id);
}

function typed(event, at = event.target) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    if (at.closest("dialog")) return;
    event.preventDefault();
    return submit();
  }
  if (event.key === "Escape" && ui.confirm && !ui.confirm.hidden) {
    confirmOrder(false);
    ui.submit.focus();
    return;
  }
  const card = at.closest(".card");
  if (!card || event.ctrlKey || event.metaKey || event.altKey) return;
  if (at.matches("textarea, input, select")) return;
  // Within a wide table or formula these keys scroll.
  if (at.closest(".scrolls") && /^Arrow(Left|Right)$/.test(event.key)) return;
  const id = card.dataset.answer;
  const cards = [...ui.list.querySelectorAll(".card")];
  const where = cards.indexOf(card);
  const aside = isWide() ? { ArrowLeft: -1, ArrowRight: 1 } : {};
  const way = { ArrowUp: -1, ArrowDown: 1, ...aside }[event.key];
  if (/^[1-9]$/.test(event.key)) {
    if (Number(event.key) <= cards.length) {
      change(placed(draft.tiers, id, Number(event.key)), "keyboard", id);
    }
  } else if (event.key === "=") change(tied(draft.tiers, id), "keyboard", id);
  else if (event.key.toLowerCase() === "v") setWide(!isWide());
  else if (event.key.toLowerCase() === "p") setPlain(!plain);
  else if (event.key.toLowerCase() === "d") setMarks(!marksOn);
  else if (way && event.shiftKey) change(stepped(draft.tiers, id, way), "keyboard", id);
  else if (way) cards[where + way]?.focus();
  else if (event.key === "Home") cards[0].focus();
  else if (event.key === "End") cards[cards.length - 1].focus();
  else if (event.key === "Enter" && at === card && !ui.cards.get(id).more.hidden) {
    ui.cards.get(id).more.click();
  } else return;
  event.preventDefault();
}

// --- the page -----------------------------------------------------------------------------------------

/** A text that is cut where it is long, with a button for the rest; `tree` is it formatted. */
function folded(text, tree) {
  const body = make("div", { class: "said text", dir: "auto" });
  const entry = { body, text, tree };
  ui.texts.push(entry);
  fill(entry);
  const more = button("link more", w("show_all"), () => {
    const open = body.classList.toggle("open");
    more.textContent = w(open ? "show_less" : "show_all");
    more.setAttribute("aria-expanded", String(open));
  }, { hidden: true, "aria-expanded": "false", "aria-label": null });
  const look = () => {
    if (!body.classList.contains("open")) more.hidden = body.scrollHeight <= body.clientHeight + 2;
    body.classList.toggle("long", !more.hidden);
    letScroll(body);
  };
  new ResizeObserver(look).observe(body);
  return { body, more, text: entry };
}

function promptPanel() {
  const parts = [];
  const { shown } = task;
  for (const [at, [user, reply]] of task.history.entries()) {
    const [userTree, replyTree] = shown.history[at];
    for (const [who, text, tree] of [["user", user, userTree], ["assistant", reply, replyTree]]) {
      const { body, more } = folded(text, tree);
      parts.push(make("div", { class: `turn ${who}` }, make("div", { class: "who" }, w(who)), body, more));
    }
  }
  const { body, more } = folded(task.instruction, shown.instruction);
  const asked = make("div", { class: "asked" }, body, more);
  if (task.history.length) asked.prepend(make("div", { class: "who" }, w("user")));
  if (task.input) {
    const given = folded(task.input, shown.input);
    asked.append(make("div", { class: "who" }, w("input")), make("div", { class: "input" }, given.body, given.more));
  }
  ui.ask = make("section", { class: "ask", tabindex: -1, "aria-label": w("prompt") },
    make("h3", {}, w(task.history.length ? "conversation" : "prompt")), ...parts, asked);
  return ui.ask;
}

function stars(id, letter) {
  const rows = props.criteria.map((name) => {
    const label = `rank-${task.id}-${letter}-${name}`;
    const group = make("div", {
      class: "stars", role: "radiogroup", "aria-labelledby": label, "aria-describedby": `${label}-hint`,
      title: w(`hint.${name}`), "data-criterion": name,
    });
    for (let value = 1; value <= props.limits.stars; value++) {
      const input = make("input", {
        type: "radio", name: label, value, "aria-label": w("stars", { n: value, of: props.limits.stars }),
        onchange: () => rate(id, name, value),
        onclick: (event) => {
          if (event.detail && draft.criteria[id]?.[name] === value) {
            rate(id, name, 0); // a second click on the same star takes it back
          }
        },
        onkeydown: (event) => {
          if (["Delete", "Backspace", "0"].includes(event.key)) rate(id, name, 0);
        },
      });
      group.append(make("label", { class: "star" }, input, make("span", { "aria-hidden": "true" }, "★")));
    }
    return make("div", { class: "criterion" },
      make("span", { id: label, class: "name" }, w(`criterion.${name}`)), group,
      make("span", { id: `${label}-hint`, class: "sr" }, w(`hint.${name}`)));
  });
  return make("div", { class: "criteria" }, ...rows);
}

/** Open the field for a better answer, with an answer's text where one is to be edited. */
function openBetter(answer = null) {
  if (locked) return;
  if (answer && !draft.better.text.trim()) {
    draft.better = { text: answer.text, from: answer.id };
    save();
  }
  ui.better.value = draft.better.text;
  ui.betterBox.hidden = false;
  ui.betterOpen.hidden = true;
  ui.better.focus();
  ui.betterBox.scrollIntoView({ block: "nearest" });
}

function betterPanel() {
  ui.better = make("textarea", {
    class: "field", rows: 4, maxlength: props.limits.better, dir: "auto",
    "aria-describedby": "rank-better-hint",
    oninput: () => {
      // Once all of an answer is deleted, what is written then is not that answer edited.
      const text = ui.better.value;
      draft.better = { text, from: text.trim() ? draft.better.from : "" };
      save();
    },
  });
  ui.better.value = draft.better.text;
  const drop = button("link", w("better_drop"), () => {
    if (locked) return;
    draft.better = { text: "", from: "" };
    save();
    ui.better.value = "";
    ui.betterBox.hidden = true;
    ui.betterOpen.hidden = false;
    ui.betterOpen.focus();
  });
  ui.betterBox = make("div", { class: "better", hidden: !draft.better.text.trim() },
    make("label", { class: "stack" }, w("better_label"), ui.better),
    make("div", { class: "row" }, make("span", { id: "rank-better-hint", class: "soft" }, w("better_hint")),
      make("span", { class: "grow" }), drop));
  ui.betterOpen = button("link", w("better"), () => openBetter(), { hidden: !ui.betterBox.hidden });
  return make("div", { class: "better-part" }, ui.betterBox, ui.betterOpen);
}

function cardOf(answer, at) {
  const letter = LETTERS[at];
  const id = answer.id;
  const { body, more, text } = folded(answer.text, answer.shown);
  const note = make("p", { class: "compared soft", hidden: true });
  more.setAttribute("title", w("answer", { letter }));
  const by = (act) => (event) => change(act(draft.tiers), event.detail ? "buttons" : "keyboard", id);
  const place = make("span", { class: "place" });
  const grip = make("div", { class: "grip", "aria-hidden": "true", title: w("drag") },
    place, make("span", { class: "dots" }));
  const names = { letter };
  const up = button("icon up", "↑", by((tiers) => stepped(tiers, id, -1)), {
    "aria-label": w("move_up", names), title: w("move_up_short"),
  });
  const down = button("icon down", "↓", by((tiers) => stepped(tiers, id, 1)), {
    "aria-label": w("move_down", names), title: w("move_down_short"),
  });
  const tie = button("icon tie", "=", by((tiers) => tied(tiers, id)), {
    "aria-label": w("tie", names), title: w("tie_short"),
  });
  const edit = button("icon edit", "✎", () => openBetter(answer), {
    "aria-label": w("better_edit", names), title: w("better_edit_short"),
  });
  const card = make("div", {
    class: "card", role: "group", tabindex: 0, "data-answer": id,
    onpointerdown: (event) => press(event, id), onmousedown: (event) => pressedBeside(event, card),
  },
    grip,
    make("div", { class: "content" },
      make("div", { class: "head" },
        make("span", { class: "letter" }, w("answer", names)),
        answer.cut ? make("span", { class: "cut", title: w("cut_hint") }, w("cut")) : null,
        make("span", { class: "moves" }, edit, up, down, tie)),
      body, more, note, stars(id, letter)));
  const item = make("li", {}, card);
  ui.cards.set(id, { item, card, place, up, down, tie, more, letter, text, note });
  return item;
}

function helpPanel() {
  const rows = [
    [["1", "…", String(task.answers.length)], "key.digits"], [["="], "key.tie"], [["Shift", "↑ ↓"], "key.move"],
    [["↑ ↓"], "key.focus"], [["Enter"], "key.open"], [["V"], "key.wide"], [["P"], "key.plain"],
    [["D"], "key.differences"], [[COMMAND, "Enter"], "key.submit"],
  ];
  return make("details", { class: "help", open: matchMedia("(hover: hover) and (min-width: 60rem)").matches },
    make("summary", {}, w("keys")),
    make("dl", {}, ...rows.flatMap(([keys, text]) => [
      make("dt", {}, ...keys.map((key) => (key === "…" ? "–" : make("kbd", {}, key)))),
      make("dd", {}, w(text)),
    ])),
    make("p", {}, w("drag_help")), make("p", {}, w("stars_help")),
    make("ul", {}, ...props.criteria.map((name) =>
      make("li", {}, make("b", {}, w(`criterion.${name}`)), " ", w(`hint.${name}`)))));
}

/** Stars are folded until they are wanted; those that a task has already are never out of sight. */
const ratingsShown = () => hasStars() || storage.get("alpaca.rank.ratings") === true;

const isWide = () => root.classList.contains("wide");

/** All of every answer, side by side where there is room; or one below the other, cut where long. */
function setWide(on) {
  storage.set("alpaca.rank.wide", on);
  root.classList.toggle("wide", on);
  ui.wide?.setAttribute("aria-pressed", String(on));
}

function answersPanel() {
  ui.list = make("ol", { class: "cards", "aria-label": w("answers_label") });
  keepFromBrowser(ui.list);
  task.answers.forEach((answer, at) => ui.list.append(cardOf(answer, at)));
  const toggle = button("link", w("ratings"), () => {
    const on = !ui.list.classList.contains("rated");
    storage.set("alpaca.rank.ratings", on);
    ui.list.classList.toggle("rated", on);
    toggle.setAttribute("aria-pressed", String(on));
  }, { "aria-pressed": String(ratingsShown()) });
  ui.list.classList.toggle("rated", ratingsShown());
  ui.wide = button("link", w("wide"), () => setWide(!isWide()), {
    "aria-pressed": String(isWide()), "data-key": "V",
  });
  ui.plain = button("link", w("plain"), () => setPlain(!plain), {
    "aria-pressed": String(plain), "data-key": "P",
  });
  ui.marks = button("link", w("differences"), () => setMarks(!marksOn), {
    "aria-pressed": String(marksOn), "data-key": "D",
  });
  ui.comment = make("textarea", {
    class: "field", rows: 1, maxlength: props.limits.comment, placeholder: w("comment_hint"),
    oninput: () => {
      draft.comment = ui.comment.value;
      save();
    },
  });
  ui.comment.value = draft.comment;
  return make("section", { class: "answers", "aria-label": w("answers") },
    make("div", { class: "line" }, make("h3", {}, w("answers")), make("span", { class: "soft" }, w("best_first")),
      make("span", { class: "grow" }), ui.wide, ui.plain, ui.marks, toggle),
    ui.list, betterPanel(),
    make("label", { class: "stack comment" }, make("span", {}, w("comment"), " ",
      make("span", { class: "soft" }, w("optional"))), ui.comment));
}

function emptyPanel() {
  const again = button("plain", w("look_again"), async () => {
    const reply = await insist("next", { holding: [] });
    if (reply.problem) refused(reply);
    else if (reply.task) show(reply.task);
    else toast(w("still_empty"));
  });
  ui.empty = make("section", { class: "empty", tabindex: -1 },
    make("div", { class: "tick", "aria-hidden": "true" }, "✓"),
    make("h3", {}, w("empty_title")), make("p", {}, w("empty_text")),
    ...(refill ? [make("p", {}, w("empty_refill")), make("code", {}, refill)] : []),
    make("p", { class: "soft" }, w("empty_looks")), again);
  return ui.empty;
}

function actions() {
  ui.undo = button("quiet", w("undo"), undo, { title: w("undo_hint") });
  const parts = [ui.undo, button("quiet", w("mine"), ownVerdicts)];
  if (task) {
    ui.allBad = button("quiet", w("all_bad"), allBad, { title: w("all_bad_hint"), "aria-pressed": "false" });
    parts.push(ui.allBad, button("quiet", w("flag"), flag));
  }
  const extra = make("div", { class: "extra" }, ...parts);
  if (!task) return make("div", { class: "bar alone" }, make("div", { class: "row" }, extra));
  const more = button("plain opens", w("more"), () => {
    const open = bar.classList.toggle("open");
    more.setAttribute("aria-expanded", String(open));
  }, { "aria-expanded": "false" });
  ui.submit = button("main", "", () => submit(), { "data-role": "submit" });
  ui.submit.append(make("span", {}, w("submit")), make("kbd", { "aria-hidden": "true" }, `${COMMAND} ↵`));
  ui.confirmed = button("main", w("confirm_yes"), () => submit(true));
  ui.confirm = make("div", { class: "confirm", role: "group", "aria-label": w("confirm_title"), hidden: true },
    make("div", {}, make("b", {}, w("confirm_title")), " ", w("confirm_text")),
    make("div", { class: "row end" },
      button("plain", w("confirm_no"), () => {
        confirmOrder(false);
        ui.cards.values().next().value.card.focus();
      }), ui.confirmed));
  const bar = make("div", { class: "bar" }, ui.confirm,
    make("div", { class: "row" }, extra, make("span", { class: "grow" }),
      button("plain skip", w("skip"), skip), more, ui.submit));
  return bar;
}

/** Build the whole board anew for the current state. */
function frame() {
  ui = { cards: new Map(), texts: [] };
  ui.numbers = make("div", { class: "numbers" });
  ui.banner = make("div", { class: "banner", role: "alert", hidden: true });
  ui.toast = make("div", { class: "toast", role: "status" });
  ui.live = make("div", { class: "sr", "aria-live": "polite" });
  const top = make("div", { class: "top" }, make("h2", {}, w("title")), ui.numbers);
  root.lang = language;
  root.classList.toggle("wide", storage.get("alpaca.rank.wide") === true);
  root.dataset.task = task ? String(task.id) : "";
  const middle = task
    ? make("div", { class: "main-part" },
      make("div", { class: "side" }, promptPanel(), helpPanel()), answersPanel())
    : root.dataset.started ? emptyPanel() : make("p", { class: "soft" }, w("loading"));
  const bar = actions();
  bar.append(ui.toast); // above the bar, wherever that stands
  root.replaceChildren(top, ui.banner, middle, bar, ui.live);
  paintProgress();
  if (task) {
    paint(false);
    markDifferences();
    task.answers.forEach((answer) => paintStars(answer.id));
  }
  lock(locked);
}

function paint(animated = true) {
  const order = flat(draft.tiers);
  const before = new Map(order.map((id) => [id, ui.cards.get(id).item.getBoundingClientRect()]));
  const focused = document.activeElement;
  order.forEach((id, at) => {
    const entry = ui.cards.get(id);
    if (ui.list.children[at] !== entry.item) ui.list.insertBefore(entry.item, ui.list.children[at] || null);
    const tier = tierOf(draft.tiers, id);
    const mates = draft.tiers[tier].filter((other) => other !== id).map((other) => ui.cards.get(other).letter);
    const above = at > 0 && draft.tiers[tier].indexOf(id) > 0;
    entry.item.classList.toggle("tied", above);
    entry.item.classList.toggle("tie-next", draft.tiers[tier].indexOf(id) < mates.length);
    entry.place.textContent = String(tier + 1);
    const place = w("card", { letter: entry.letter, place: tier + 1, of: draft.tiers.length });
    const label = mates.length ? w("card_tied", { card: place, others: mates.join(w("comma")) }) : place;
    entry.card.setAttribute("aria-label", label);
    entry.tie.setAttribute("aria-pressed", String(above));
    entry.up.setAttribute("aria-disabled", String(tier === 0 && !mates.length));
    entry.down.setAttribute("aria-disabled", String(tier === draft.tiers.length - 1 && !mates.length));
    entry.tie.setAttribute("aria-disabled", String(at === 0));
  });
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
  ui.allBad.setAttribute("aria-pressed", String(draft.allBad));
  ui.list.classList.toggle("bad", draft.allBad);
  if (!animated || calm.matches) return;
  for (const id of order) {
    const item = ui.cards.get(id).item;
    const [from, to] = [before.get(id), item.getBoundingClientRect()];
    const shift = `translate(${from.left - to.left}px, ${from.top - to.top}px)`;
    if (from.left === to.left && from.top === to.top) continue;
    item.animate([{ transform: shift }, { transform: "none" }], { duration: 160, easing: "ease-out" });
  }
}

function paintStars(id) {
  for (const group of ui.cards.get(id).card.querySelectorAll(".stars")) {
    const value = draft.criteria[id]?.[group.dataset.criterion] || 0;
    for (const input of group.querySelectorAll("input")) {
      input.checked = Number(input.value) === value;
      input.parentElement.classList.toggle("on", Number(input.value) <= value);
    }
  }
}

function paintProgress() {
  if (!progressKnown) return;
  const { mine, today, hour, left } = progressKnown; // of all kinds: gold questions do not show
  const share = mine + left ? Math.floor((mine / (mine + left)) * 100) : 100;
  const number = (key, n) => make("span", {}, make("b", {}, String(n)), " ", w(key));
  const inside = make("span");
  inside.style.width = `${share}%`;
  ui.numbers.replaceChildren(
    number("today", today), number("pace", hour), number("left", left),
    make("span", { class: "meter", role: "img", "aria-label": w("meter", { share }), title: w("meter", { share }) }, inside));
  ui.undo.disabled = locked || (mine === 0 && !last.length);
}

function lock(on) {
  locked = on;
  root.setAttribute("aria-busy", String(on));
  root.classList.toggle("locked", on && Boolean(task));
  if (ui.submit) ui.submit.disabled = on;
  if (ui.comment) ui.comment.readOnly = on;
  if (ui.better) ui.better.readOnly = on;
  if (ui.undo) ui.undo.disabled = on || (progressKnown?.mine === 0 && !last.length);
}

function banner(text, buttons = []) {
  ui.banner.hidden = !text;
  ui.banner.replaceChildren(...(text ? [make("span", { class: "grow" }, text), ...buttons.filter(Boolean)] : []));
}

function confirmOrder(on) {
  if (!ui.confirm) return;
  ui.confirm.hidden = !on;
  if (on) ui.confirmed.focus();
}

let toastClock = 0;
function toast(text) {
  clearTimeout(toastClock);
  ui.toast.textContent = text;
  ui.toast.classList.add("on");
  toastClock = setTimeout(() => ui.toast.classList.remove("on"), 4000);
}

function tell(text) {
  ui.live.textContent = "";
  requestAnimationFrame(() => {
    ui.live.textContent = text;
  });
}

root.addEventListener("keydown", typed);
// A click beside the cards leaves the focus to the page, to the tab that was clicked or to a button
// of the board: the first answer takes the keys then.
document.addEventListener("keydown", function beside(event) {
  if (!root.isConnected) return document.removeEventListener("keydown", beside);
  if (event.defaultPrevented || !task || !onScreen()) return;
  const at = event.target;
  const nowhere = at === document.body || at.matches('[role="tab"]');
  const besideCards = root.contains(at) && !at.closest(".card, dialog") && !at.matches("textarea, input, select");
  if (!nowhere && !besideCards) return;
  // Home, End and Enter are the page's there, and arrows those of tabs and buttons.
  const keys = at === document.body ? /^([1-9=vVpPdD]|ArrowUp|ArrowDown|Escape)$/ : /^[1-9=vVpPdD]$/;
  if (keys.test(event.key) || (nowhere && (event.ctrlKey || event.metaKey))) {
    typed(event, ui.list.querySelector(".card"));
  }
});
for (const kind of ["pointerdown", "keydown", "input"]) root.addEventListener(kind, active);
addEventListener("scroll", active, { passive: true });

frame();
const visibility = new IntersectionObserver(async (entries) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  visibility.disconnect();
  root.dataset.started = "yes";
  await advance();
  leftovers();
});
visibility.observe(root);
