// Gradio runs this as the body of a function of `element` and `props`.
const press = (event) => {
  const parts = [];
  if (event.ctrlKey || event.metaKey) parts.push("Ctrl");
  if (event.altKey) parts.push("Alt");
  const named = event.key === "Enter" || event.key === "Escape" || !event.altKey;
  parts.push(named ? event.key : event.code);
  const id = props.keys[parts.join("+")];
  const button = id && document.getElementById(id);
  if (!button || button.disabled || button.offsetParent === null || event.isComposing) return;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName || "");
  if (typing && event.key.length === 1 && !event.altKey && !event.ctrlKey) return;
  if (typing && event.key === "Enter" && event.target.closest("#chat-log")) return;  // an edit
  event.preventDefault();
  event.stopPropagation();
  button.click();
};
document.addEventListener("keydown", press, true);
for (const [key, id] of Object.entries(props.keys)) {
  const describe = (tries) => {
    const button = document.getElementById(id);
    if (!button) return tries && setTimeout(() => describe(tries - 1), 200);
    button.dataset.key = key.replace("Escape", "Esc").replace("Key", "");
    button.setAttribute("aria-keyshortcuts", key.replace("Ctrl", "Control").replace("Key", ""));
  };
  describe(50);
}
