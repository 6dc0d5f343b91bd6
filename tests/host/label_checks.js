// Texts of the drawn plots that are cut off by the plot's edge or cover one another.
(() => {
  const found = [];
  document.querySelectorAll("[data-chart]").forEach((plot) => {
    if (!plot.querySelector("svg")) { found.push(`${plot.dataset.chart}: not drawn`); return; }
    const frame = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll("svg text")]
      .filter((t) => t.textContent.trim() && t.getClientRects().length && !t.closest(".hoverlayer"))
      .map((t) => ({ text: t.textContent.trim(), box: t.getBoundingClientRect() }));
    texts.forEach(({ text, box }) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) {
        found.push(`${plot.dataset.chart}: "${text}" is cut off`);
      }
    });
    texts.forEach((a, i) => texts.slice(i + 1).forEach((b) => {
      const width = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
      const height = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
      if (width > 2 && height > 3) found.push(`${plot.dataset.chart}: "${a.text}" covers "${b.text}"`);
    }));
  });
  return found;
})()
