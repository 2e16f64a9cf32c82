// Prompts to rank on the Data tab: a file or pasted text, the verdict, and the button that adds
// them. The HTML comes from templates of the server, which escape everything.
"use strict";

const root = element.querySelector(".prompt-upload-box");
const prefix = window.alpacaPrefix || "";
let shown = null;  // { body, suffix } of the verdict that is shown; Gradio calls an argument `upload`
let busy = false;

const part = (name) => root.querySelector(`[data-part="${name}"]`);

async function call(query, options) {
  try {
    const response = await fetch(`${prefix}/prompts${query}`, options);
    const reply = await response.json();
    if (!response.ok && !reply.html) {
      const line = document.createElement("p");
      line.className = "bad";
      line.textContent = reply.detail || String(response.status);
      reply.html = line.outerHTML;
    }
    return { ok: response.ok, html: "", ...reply };
  } catch {
    return { ok: false, html: "" };  // the status line of the page tells of a lost server
  }
}

function showProgress(html) {
  if (html !== undefined && part("progress").innerHTML !== html) part("progress").innerHTML = html;
}

async function refresh() {
  if (busy || root.offsetParent === null) return;
  const details = root.querySelector("details");
  if (details && !details.open) return;
  const reply = await call("");
  if (!reply.ok || busy) return;
  if (!details) root.innerHTML = reply.html;
  showProgress(reply.progress);
}

function wait(waiting) {
  busy = waiting;
  root.setAttribute("aria-busy", String(waiting));
  for (const button of root.querySelectorAll("button")) button.disabled = waiting;
}

async function send(action, sent) {
  wait(true);
  const query = `?do=${action}&suffix=${encodeURIComponent(sent.suffix)}`;
  const reply = await call(query, {
    method: "POST",
    headers: { "content-type": "application/octet-stream", accept: "application/json" },
    body: sent.body,
  });
  wait(false);
  if (action === "check" && shown !== sent) return reply;  // the text was changed meanwhile
  if (action !== "answer" || !reply.ok) part("verdict").innerHTML = reply.html;
  if (reply.ok) showProgress(reply.progress);
  return reply;
}

function chosen() {
  const file = root.querySelector("#upload-file").files[0];
  if (!file) return { body: root.querySelector("#upload-text").value, suffix: "pasted" };
  const match = /(\.jsonl?|\.csv|\.tsv|\.parquet)(\.gz)?$/i.exec(file.name);
  return { body: file, suffix: match ? match[0].toLowerCase() : "" };
}

function forget() {
  shown = null;
  part("verdict").innerHTML = "";
}

element.addEventListener("input", (event) => {
  if (event.target.id === "upload-text") root.querySelector("#upload-file").value = "";
  forget();
});

element.addEventListener("submit", (event) => event.preventDefault());

element.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-upload]");
  if (!button || busy) return;
  event.preventDefault();
  const action = button.dataset.upload;
  if (action === "check") shown = chosen();
  if (action === "add" && shown === null) return;
  if (action === "remove") {
    await send(action, { body: JSON.stringify([button.dataset.prompt]), suffix: "" });
    return;
  }
  const reply = await send(action, action === "answer" ? { body: "", suffix: "" } : shown);
  if (action !== "add" || !reply.ok) return;
  shown = null;
  root.querySelector("#upload-file").value = "";
  root.querySelector("#upload-text").value = "";
});

new IntersectionObserver(refresh).observe(root);
setInterval(refresh, 3000);
