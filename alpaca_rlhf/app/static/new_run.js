// New runs on the Train tab: uploads, the plan, the start, and the choice of another run. The HTML
// comes from templates of the server, which escape everything.
"use strict";

const root = element.querySelector(".new-run-box");
const prefix = window.alpacaPrefix || "";
// Kept in this tab of the browser, so that a reload loses no field; files are chosen anew.
const KEPT = "alpaca.new-run";
const uploaded = { rows: "", prompts_file: "" };
let busy = false;

const part = (name) => root.querySelector(`[data-part="${name}"]`);

function tell(where, html) {
  const place = part(where);
  if (place) place.innerHTML = html;
}

const fields = () => [...root.querySelectorAll("[name]:not([type=file]):not([name=other])")];

function keep() {
  const shown = fields().map((field) => [field.name, field.value, field.checked ?? false]);
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(shown));
  } catch {
    // A browser that keeps nothing: the form works all the same.
  }
}

function restore() {
  let kept = null;
  try {
    kept = JSON.parse(sessionStorage.getItem(KEPT));
  } catch {
    // As above.
  }
  if (!Array.isArray(kept)) return;
  for (const field of fields()) {
    const isBox = field.type === "checkbox";
    const same = ([name, value]) => name === field.name && (!isBox || value === field.value);
    const before = kept.find(same);
    if (!before) continue;
    if (isBox) field.checked = before[2] === true;
    else field.value = before[1];
    if (field.tagName === "SELECT" && field.selectedIndex < 0) field.selectedIndex = 0;
  }
  if (fields().some((field) => field.name === "name" && field.value)) {
    root.querySelector("details").open = true;
  }
}

async function call(path, options) {
  try {
    const response = await fetch(`${prefix}${path}`, options);
    const reply = await response.json();
    if (reply.html === undefined) reply.html = "";
    if (!response.ok && !reply.html) {
      const line = document.createElement("p");
      line.className = "bad";
      line.textContent = reply.detail || String(response.status);
      reply.html = line.outerHTML;
    }
    return { ok: response.ok, ...reply };
  } catch {
    return { ok: false, html: "" };  // the status line of the page tells of a lost server
  }
}

async function fill() {
  if (root.dataset.filled || busy || root.offsetParent === null) return;
  busy = true;
  const reply = await call("/training/new");
  busy = false;
  if (!reply.ok) return;
  root.innerHTML = reply.html;
  root.dataset.filled = "yes";
  restore();
}

const wholeNumber = (text) => (/^\d+$/.test(text) ? Number(text) : text);

function form() {
  const value = (name) => root.querySelector(`[name="${name}"]`).value;
  return {
    name: value("name").trim(),
    base: value("base"),
    judge: value("judge"),
    rows: uploaded.rows,
    prompts_file: uploaded.prompts_file,
    prompts: wholeNumber(value("prompts")),
    k: wholeNumber(value("k")),
    rounds: wholeNumber(value("rounds")),
    policies: [...root.querySelectorAll('[name="policies"]:checked')].map((box) => box.value),
    drop_broken: root.querySelector('[name="drop_broken"]').checked,
  };
}

function wait(waiting) {
  busy = waiting;
  root.setAttribute("aria-busy", String(waiting));
  for (const button of root.querySelectorAll("button")) button.disabled = waiting;
}

async function post(path, body, where) {
  if (busy) return { ok: false };
  wait(true);
  const reply = await call(path, {
    method: "POST",
    headers: { "content-type": "application/json", accept: "application/json" },
    body: JSON.stringify(body),
  });
  wait(false);
  tell(where, reply.html);
  return reply;
}

function leave() {
  try {
    sessionStorage.removeItem(KEPT);
  } catch {
    // As above.
  }
  wait(true);  // the page reloads by itself once the app is on the other run; its address stays
}

element.addEventListener("change", async (event) => {
  const kind = event.target.dataset && event.target.dataset.upload;
  if (!kind) {
    tell("plan", "");
    keep();
    return;
  }
  const file = event.target.files[0];
  uploaded[event.target.name] = "";
  tell(`upload-${kind}`, "");
  tell("plan", "");
  if (!file) return;
  const match = /(\.jsonl?|\.csv|\.tsv|\.parquet)(\.gz)?$/i.exec(file.name);
  const suffix = match ? match[0].toLowerCase() : "";
  wait(true);
  const query = `kind=${encodeURIComponent(kind)}&suffix=${encodeURIComponent(suffix)}`;
  const reply = await call(`/training/upload?${query}`, {
    method: "POST",
    headers: { "content-type": "application/octet-stream" },
    body: file,
  });
  wait(false);
  if (reply.ok) uploaded[event.target.name] = reply.name;
  tell(`upload-${kind}`, reply.html);
});

element.addEventListener("submit", (event) => event.preventDefault());

element.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-new]");
  if (!button) return;
  event.preventDefault();
  const action = button.dataset.new;
  if (action === "open") {
    const run = root.querySelector('[name="other"]').value;
    if ((await post("/training/open", { run }, "opened")).ok) leave();
  } else if (action === "start") {
    if ((await post("/training/new", { do: "start", form: form() }, "outcome")).ok) leave();
  } else {
    tell("outcome", "");
    const planned = form();
    await post("/training/new", { do: "plan", form: planned }, "plan");
    // What is started is what was planned.
    if (JSON.stringify(form()) !== JSON.stringify(planned)) tell("plan", "");
  }
});

new IntersectionObserver(fill).observe(root);
setInterval(fill, 1500);
