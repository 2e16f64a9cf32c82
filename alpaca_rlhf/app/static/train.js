// The Train tab: asks the server for its sections while it is in sight, and replaces what changed.
// The sections come from templates of the server, which escape everything.
"use strict";

const EVERY_MS = 1500;
const root = element.querySelector(".train");
const prefix = window.alpacaPrefix || "";
const shown = {};
let asking = false;

function replace(name, html) {
  if (shown[name] === html) return;
  shown[name] = html;
  let section = root.querySelector(`[data-section="${name}"]`);
  if (!section) {
    section = document.createElement("div");
    section.dataset.section = name;
    root.append(section);
  }
  const pressed = section.contains(document.activeElement) && document.activeElement;
  section.innerHTML = html;
  const log = section.querySelector(".log");
  if (log) log.scrollTop = log.scrollHeight;
  const next = pressed && section.querySelector("button");
  if (next) next.focus();
}

async function poll() {
  const inSight = document.visibilityState === "visible" && root.offsetParent !== null;
  if (!inSight || asking) return;
  asking = true;
  try {
    const response = await fetch(`${prefix}/training`, { headers: { accept: "application/json" } });
    if (response.ok) {
      const { sections } = await response.json();
      for (const [name, html] of Object.entries(sections)) replace(name, html);
      root.dataset.filled = "yes";
    }
  } catch {
    // The status line of the page tells of a lost server.
  } finally {
    asking = false;
  }
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.go) {
    const tabs = [...document.querySelectorAll("[role=tab]")];
    const tab = tabs.find((candidate) => candidate.textContent.trim() === button.dataset.go);
    if (tab) tab.click();
    return;
  }
  if (!button.dataset.do) return;
  button.disabled = true;
  delete shown.head; // drawn anew by the next look, whatever comes of it
  trigger("submit", { do: button.dataset.do });
  setTimeout(poll, 500);
});

new IntersectionObserver(poll).observe(root);
setInterval(poll, EVERY_MS);
