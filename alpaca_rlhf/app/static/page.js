// The app's own page: light and dark, the line about the model, and signing in again.
(() => {
  "use strict";
  const language = /^zh\b/i.test(navigator.language || "") ? "zh-CN" : "en";
  const says = window.alpacaWords[language];
  document.documentElement.lang = language;

  // --- light and dark: as the system is, until the switch is pressed --------------------------
  const kept = "alpaca.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem(kept); } catch { return null; } };
  const paint = () => {
    const dark = stored() ? stored() === "dark" : system.matches;
    if (document.body && document.body.classList.contains("dark") !== dark) {
      document.body.classList.toggle("dark", dark);
    }
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    for (const one of document.querySelectorAll(".alpaca-dark")) {
      one.setAttribute("aria-pressed", String(dark));
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
    try { localStorage.setItem(kept, dark ? "dark" : "light"); } catch { /* not kept */ }
    document.body.classList.toggle("dark", dark);
    paint();
  });

  // --- the line about the model, and whether the app is there --------------------------------
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
  const look = async () => {
    if (document.visibilityState !== "visible") return;
    try {
      const response = await fetch("/status", { headers: { accept: "application/json" } });
      if (!response.ok) return;
      const said = await response.json();
      if (account() !== null && said.account !== account()) location.reload();
      show(said.status[language], false);
    } catch {
      show(says["lost"], true);
    }
  };
  setInterval(look, 3000);
  document.addEventListener("visibilitychange", look);
  window.alpacaLook = look;

  // --- a session that ended: sign in again, and the page stays as it is ----------------------
  const send = window.fetch.bind(window);
  window.fetch = async (...given) => {
    const response = await send(...given);
    const url = new URL(given[0] instanceof Request ? given[0].url : String(given[0]), location);
    if (response.status === 401 && url.origin === location.origin && url.pathname !== "/login") {
      ask();
    }
    return response;
  };
  const element = (name, given = {}, ...inside) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(given)) made.setAttribute(key, value);
    made.append(...inside);
    return made;
  };
  let dialog = null;
  const ask = () => {
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
    const known = document.querySelector("[data-account] .user");
    if (known) name.value = known.textContent;
    const form = element("form", {},
      element("h2", { id: "alpaca-ended" }, says["ended.title"]),
      element("p", {}, says["ended.stays"]),
      problem,
      element("label", { for: "alpaca-name" }, says["login.name"]), name,
      element("label", { for: "alpaca-password" }, says["login.password"]), password,
      element("button", {}, says["login.sign_in"]),
    );
    dialog = element("dialog", { class: "alpaca-ended", "aria-labelledby": "alpaca-ended" }, form);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      let said, good = false;
      try {
        const response = await send("/login", {
          method: "POST",
          headers: { accept: "application/json" },
          body: new URLSearchParams({ name: name.value, password: password.value }),
        });
        good = response.ok;
        said = await response.json();
      } catch {
        said = { detail: says["lost"] };
      }
      if (!good) {
        problem.textContent = said.detail;
        problem.hidden = false;
        password.select();
        return;
      }
      if (account() !== null && said.account !== account()) {
        location.reload();  // somebody else: nothing of the first one may stay
        return;
      }
      dialog.close();
      dialog.remove();
      dialog = null;
      look();
    });
    document.body.append(dialog);
    dialog.showModal();
    (name.value ? password : name).focus();
  };
})();
