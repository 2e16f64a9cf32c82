"""Keys that press buttons, while the tab that holds them is on screen."""

from __future__ import annotations

from collections.abc import Mapping

import gradio as gr

_SCRIPT = """
const pressed = (event) => {
  const parts = [];
  if (event.ctrlKey || event.metaKey) parts.push("Ctrl");
  if (event.altKey) parts.push("Alt");
  const plain = event.key === "Enter" || event.key === "Escape" || !event.altKey;
  parts.push(plain ? event.key : event.code);
  const id = props.keys[parts.join("+")];
  const button = id && document.getElementById(id);
  if (!button || button.disabled || button.offsetParent === null || event.isComposing) return;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName || "");
  if (typing && event.key.length === 1 && !event.altKey && !event.ctrlKey) return;
  event.preventDefault();
  event.stopPropagation();
  button.click();
};
document.addEventListener("keydown", pressed, true);
for (const [key, id] of Object.entries(props.keys)) {
  const tell = (tries) => {
    const button = document.getElementById(id);
    if (!button) return tries && setTimeout(() => tell(tries - 1), 200);
    button.dataset.key = key.replace("Escape", "Esc").replace("Key", "");
    button.setAttribute("aria-keyshortcuts", key.replace("Ctrl", "Control").replace("Key", ""));
  };
  tell(50);
}
"""


def keys(of: Mapping[str, str]) -> None:
    """Let keys press buttons.

    Args:
        of: A key (`Escape`, `Ctrl+Enter`, `Alt+KeyR`, `1`) to the `elem_id` of a button, which
            shows it where there is a keyboard. Keys without Alt or Ctrl that write something do
            nothing in a field.
    """
    gr.HTML(
        html_template="<span hidden></span>",
        js_on_load=_SCRIPT,
        apply_default_css=False,
        container=False,
        padding=False,
        keys=dict(of),
    )
