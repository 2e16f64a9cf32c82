// Gradio runs this as the body of a function of `element` and `props`. Opens the conversation that
// the address of the page names; the server asks whose it is.
const follow = () => {
  const wanted = window.alpacaPlace?.wantedChat();
  if (wanted !== undefined) trigger("submit", { chat: wanted });
};
window.addEventListener("hashchange", follow);
follow();
