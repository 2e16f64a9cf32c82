// The app's own page: light and dark, the line about the model, and signing in again.
(() => {
  "use strict";
  const language = /^zh\b/i.test(navigator.language || "") ? "zh-CN" : "en";
  const texts = window.alpacaTexts[language];
  const prefix = window.alpacaPrefix;  // the path before the app's own paths, mostly empty
  document.documentElement.lang = language;

  // --- light and dark: as the system is, until the switch is pressed --------------------------
  const THEME_KEY = "alpaca.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem(THEME_KEY); } catch { return null; } };
  const paint = () => {
    const dark = stored() ? stored() === "dark" : system.matches;
    if (document.body && document.body.classList.contains("dark") !== dark) {
      document.body.classList.toggle("dark", dark);
    }
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    for (const button of document.querySelectorAll(".alpaca-dark")) {
      button.setAttribute("aria-pressed", String(dark));
    }
  };
  system.addEventListener("change", paint);
  const begin = () => {
    paint();
    // Gradio paints the page by itself when it starts, and after.
    new MutationObserver(paint).observe(document.body, {
      attributes: true, attributeFilter: ["class"], childList: true, subtree: true,
    });
  };
  document.body ? begin() : document.addEventListener("DOMContentLoaded", begin);
  document.addEventListener("click", (event) => {
    if (!event.target.closest || !event.target.closest(".alpaca-dark")) return;
    const dark = !document.body.classList.contains("dark");
    try { localStorage.setItem(THEME_KEY, dark ? "dark" : "light"); } catch { /* no storage */ }
    document.body.classList.toggle("dark", dark);
    paint();
  });

  // --- the model's status line, which also notices a lost server --------------------------------
  const account = () => {
    const head = document.querySelector("[data-account]");
    return head ? Number(head.dataset.account) : null;
  };
  const show = (text, lost) => {
    const line = document.getElementById("alpaca-status");
    if (!line) return;
    if (line.textContent !== text) line.textContent = text;
    line.classList.toggle("lost", lost);
  };
  const poll = async () => {
    if (document.visibilityState !== "visible") return;
    try {
      const response = await fetch(`${prefix}/status`, { headers: { accept: "application/json" } });
      if (!response.ok) return;
      const reply = await response.json();
      const moved = reply.run !== window.alpacaRun;  // the app has gone on to another run
      if (moved || (account() !== null && reply.account !== account())) location.reload();
      show(reply.status[language], false);
    } catch {
      show(texts["lost"], true);
    }
  };
  setInterval(poll, 3000);
  document.addEventListener("visibilitychange", poll);

  // --- a tab to come back to after a reload ------------------------------------------------------
  const TAB_KEY = "alpaca.tab";
  const reopen = (key) => {
    const looking = setInterval(() => {
      const tabs = [...document.querySelectorAll("[role=tab]")];
      const tab = tabs.find((candidate) => candidate.textContent.trim() === texts[key]);
      if (!tab) return;
      clearInterval(looking);
      tab.click();
    }, 200);
    setTimeout(() => clearInterval(looking), 20000);
  };
  try {
    const key = sessionStorage.getItem(TAB_KEY);
    sessionStorage.removeItem(TAB_KEY);
    if (key) reopen(key);
  } catch { /* no storage */ }

  // --- every request says on which run the page was opened; and a session that ended: sign in
  // again, and the page stays as it is ------------------------------------------------------------
  const send = window.fetch.bind(window);
  window.fetch = async (...args) => {
    const url = new URL(args[0] instanceof Request ? args[0].url : String(args[0]), location);
    if (url.origin === location.origin) {
      const given = (args[1] || {}).headers || (args[0] instanceof Request ? args[0].headers : {});
      const headers = new Headers(given);
      headers.set("x-alpaca-run", window.alpacaRun);
      args = [args[0], { ...args[1], headers }];
    }
    const response = await send(...args);
    if (response.status === 401 && url.origin === location.origin && url.pathname !== `${prefix}/login`) {
      signInAgain();
    }
    return response;
  };
  const element = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  let dialog = null;
  const signInAgain = () => {
    if (dialog) return;
    const problem = element("p", { role: "alert", class: "problem" });
    problem.hidden = true;
    const name = element("input", {
      id: "alpaca-name", name: "name", autocomplete: "username", autocapitalize: "none",
      required: "", maxlength: "80",
    });
    const password = element("input", {
      id: "alpaca-password", name: "password", type: "password", required: "",
      autocomplete: "current-password", maxlength: "1000",
    });
    const user = document.querySelector("[data-account] .user");
    if (user) name.value = user.textContent;
    const form = element("form", {},
      element("h2", { id: "alpaca-ended" }, texts["ended.title"]),
      element("p", {}, texts["ended.stays"]),
      problem,
      element("label", { for: "alpaca-name" }, texts["login.name"]), name,
      element("label", { for: "alpaca-password" }, texts["login.password"]), password,
      element("button", {}, texts["login.sign_in"]),
    );
    dialog = element("dialog", { class: "alpaca-ended", "aria-labelledby": "alpaca-ended" }, form);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      let reply, succeeded = false;
      try {
        const response = await send(`${prefix}/login`, {
          method: "POST",
          headers: { accept: "application/json" },
          body: new URLSearchParams({ name: name.value, password: password.value }),
        });
        succeeded = response.ok;
        reply = await response.json();
      } catch {
        reply = { detail: texts["lost"] };
      }
      if (!succeeded) {
        problem.textContent = reply.detail;
        problem.hidden = false;
        password.select();
        return;
      }
      if (account() !== null && reply.account !== account()) {
        location.reload();  // somebody else: nothing of the first person may stay
        return;
      }
      dialog.close();
      dialog.remove();
      dialog = null;
      poll();
    });
    document.body.append(dialog);
    dialog.showModal();
    (name.value ? password : name).focus();
  };
})();
