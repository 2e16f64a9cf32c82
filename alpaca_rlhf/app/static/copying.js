// Gradio runs this as the body of a function of `element` and `props`. What the chat shows has a
// mark after each character that could begin a tag or an entity (`chat_messages.inert`); what is
// copied has none, whichever way: the chat's buttons, a selection, or a box in which one edits.
const unmarked = (text) => text.replace(new RegExp(`([<&])${props.mark}`, "g"), "$1");
const copied = (event) => {
  const at = event.target;
  const boxed = at && /^(TEXTAREA|INPUT)$/.test(at.tagName || "") && at.selectionStart !== null;
  const text = boxed
    ? at.value.slice(at.selectionStart, at.selectionEnd)
    : String(document.getSelection());
  if (unmarked(text) === text) return;
  event.clipboardData.setData("text/plain", unmarked(text));
  event.preventDefault();
  if (event.type === "cut" && boxed) document.execCommand("delete");
};
for (const kind of ["copy", "cut"]) document.addEventListener(kind, copied, true);
document.addEventListener("dragstart", (event) => {
  const text = String(document.getSelection());
  if (unmarked(text) !== text) event.dataTransfer?.setData("text/plain", unmarked(text));
});
// Absent where the page was not loaded safely; Gradio copies from a box there.
const clipboard = navigator.clipboard;
if (clipboard && clipboard.writeText) {
  const write = clipboard.writeText.bind(clipboard);
  clipboard.writeText = (text) => write(unmarked(String(text)));
}
