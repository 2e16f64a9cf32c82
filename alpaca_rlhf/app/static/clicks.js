element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-do]');
  if (!button) return;
  trigger('submit', {
    do: button.dataset.do, id: Number(button.dataset.id), extra: Number(button.dataset.extra),
  });
});
