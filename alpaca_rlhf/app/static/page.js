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

  // --- the address names the place: the tab, and in Chat the open conversation and its run -------
  // `#train`, `#chat/12` or `#chat/12/0a1b2c3d`: the number of a conversation means another one in
  // another run. Whatever else stands there is ignored.
  const TABS = ["rank", "chat", "compare", "train", "data"];
  const PLACE = /^#(rank|chat|compare|train|data)(?:\/([1-9]\d{0,14})(?:\/([0-9a-f]{8}))?)?$/;
  let openChat = null;  // number of the conversation on screen
  let leading = null;  // the clock of a tab that is not there yet
  const place = () => {
    const match = PLACE.exec(location.hash);
    if (!match) return null;
    const [, tab, number, run] = match;
    const here = tab === "chat" && number && (!run || run === window.alpacaRun);
    return { tab, chat: here ? Number(number) : null };
  };
  const shownTab = () => TABS.find((key) => {
    const panel = document.getElementById(`tab-${key}`);
    return panel && panel.offsetParent !== null;
  });
  const write = (tab, how) => {
    const chat = tab === "chat" && openChat !== null ? `/${openChat}/${window.alpacaRun}` : "";
    const hash = `#${tab}${chat}`;
    // The whole path: the page may lie below a prefix.
    if (location.hash !== hash) history[how](null, "", location.pathname + location.search + hash);
  };
  const note = () => {
    const tab = shownTab();
    if (tab && !leading && place()?.tab !== tab) write(tab, place() ? "pushState" : "replaceState");
  };
  const stopLeading = () => {
    clearInterval(leading);
    leading = null;
  };
  const buttonsOf = (tab) => {
    const inRow = [...document.querySelectorAll(`[role=tab][data-tab-id="${tab}"]`)];
    const inMenu = [...document.querySelectorAll(".overflow-dropdown button")];
    return [...inRow, ...inMenu.filter((item) => item.textContent.trim() === texts[tab])];
  };
  const lead = () => {
    stopLeading();
    const wanted = place();
    if (!wanted) return;
    const until = Date.now() + 20000;
    const step = () => {
      if (shownTab() === wanted.tab) {
        stopLeading();
      } else if (Date.now() > until) {  // a tab of admins, say
        stopLeading();
        if (shownTab()) write(shownTab(), "replaceState");
      } else {
        for (const button of buttonsOf(wanted.tab)) button.click();
      }
    };
    leading = setInterval(step, 200);
    step();
  };
  document.addEventListener("click", (event) => {
    if (event.isTrusted) stopLeading();
    for (const ms of [50, 500]) setTimeout(note, ms);  // Gradio shows the tab a moment later
  });
  window.addEventListener("hashchange", lead);
  window.alpacaPlace = {
    /** Number of the conversation to open, null for a new one, undefined if there is none to open. */
    wantedChat() {
      const wanted = place();
      return wanted && wanted.tab === "chat" && wanted.chat !== openChat ? wanted.chat : undefined;
    },
    /** Note which conversation is on screen; null is one that is not kept yet. */
    chatOpened(number) {
      const before = openChat;
      openChat = Number.isInteger(number) && number > 0 ? number : null;
      if (openChat === before || shownTab() !== "chat") return;
      write("chat", before === null ? "replaceState" : "pushState");
    },
  };
  lead();

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
        // Somebody else: nothing of the first person may stay.
        openChat = null;
        if (place()) write(place().tab, "replaceState");
        location.reload();
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
