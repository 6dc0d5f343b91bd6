"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  let printing = false;
  const drawn = new Map();

  function applyTheme() {
    root.dataset.theme = printing ? "light" : chosen || (dark.matches ? "dark" : "light");
  }

  function resolve(value, style) {
    if (typeof value === "string") {
      if (value[0] !== "@") return value;
      const [name, alpha] = value.slice(1).split("/"); // "@best", or "@best/0.2"
      const colour = style.getPropertyValue("--" + name).trim();
      return alpha ? colour + Math.round(alpha * 255).toString(16).padStart(2, "0") : colour;
    }
    if (Array.isArray(value)) return value.map((item) => resolve(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, style)]));
    }
    return value;
  }

  function annotations(figure, width) {
    if (!figure.annotations) return figure.layout.annotations;
    const widths = Object.keys(figure.annotations).map(Number).sort((a, b) => a - b);
    const fitting = widths.filter((w) => w <= width);
    return figure.annotations[fitting.length ? fitting[fitting.length - 1] : widths[0]];
  }

  // Width in CSS pixels that a sheet of A4 or Letter leaves, by the print columns of report.css.
  // Before printing the layout is still that of the screen, so it cannot be asked.
  function paper(node) {
    if (node.closest(".bars")) return 345;
    return node.closest(".radar") ? 235 : 705;
  }

  function draw(node) {
    const figure = figures[node.dataset.chart];
    const style = getComputedStyle(root);
    const width = Math.max(Math.min(node.clientWidth, printing ? paper(node) : Infinity), 200);
    const layout = resolve({ ...figure.layout, annotations: annotations(figure, width) }, style);
    const ink = style.getPropertyValue("--ink").trim();
    const line = style.getPropertyValue("--line").trim();
    const grid = style.getPropertyValue("--grid").trim();
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) {
        layout[key] = { gridcolor: grid, linecolor: line, zerolinecolor: line, automargin: false, ...layout[key] };
      }
    }
    Object.assign(layout, {
      width, height: figure.height,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      hoverlabel: { bgcolor: style.getPropertyValue("--surface").trim(), bordercolor: line, font: { color: ink, size: 12 } },
    });
    Plotly.react(node, resolve(figure.data, style), layout, { displayModeBar: false, responsive: false });
    drawn.set(node, width);
  }

  function visible(node) { return node.offsetParent !== null && node.clientWidth > 0; }
  function redraw(onlyResized) {
    for (const [node, width] of drawn) {
      if (visible(node) && !(onlyResized && node.clientWidth === width)) draw(node);
    }
  }

  applyTheme();
  const nodes = [...document.querySelectorAll("[data-chart]")];
  for (const node of nodes) node.style.minHeight = figures[node.dataset.chart].height + "px";
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !drawn.has(entry.target)) {
        loadPlotly();
        draw(entry.target);
      }
    }
  }, { rootMargin: "300px" });

  function loadPlotly() {
    if (window.Plotly || !nodes.length) return;
    const code = document.createElement("script");
    code.textContent = document.getElementById("plotly").textContent;
    document.head.append(code); // runs at once
  }
  // After the first frame, so that what can be read is there before what must be drawn. Where no
  // plot is in view, Plotly (the larger part of the page) waits until the reader is at the verdict
  // and the browser has nothing to do.
  requestAnimationFrame(() => setTimeout(() => {
    nodes.forEach((node) => watcher.observe(node));
    root.dataset.plots = "ready";
    const whenIdle = window.requestIdleCallback || ((run) => run());
    setTimeout(() => whenIdle(loadPlotly, { timeout: 5000 }), 1000);
  }));

  let timer = 0;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(() => redraw(true), 120); });
  dark.addEventListener("change", () => { applyTheme(); redraw(false); });
  document.getElementById("theme").addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    applyTheme();
    redraw(false);
  });

  const open = () => {
    const target = location.hash.startsWith("#variant-") && document.getElementById(location.hash.slice(1));
    if (target) target.open = true;
  };
  addEventListener("hashchange", open);
  open();

  let closed = [];
  addEventListener("beforeprint", () => {
    printing = true;
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((d) => { d.open = true; });
    applyTheme();
    loadPlotly();
    nodes.filter(visible).forEach(draw);
  });
  addEventListener("afterprint", () => {
    printing = false;
    closed.forEach((d) => { d.open = false; });
    applyTheme();
    redraw(false);
  });
})();
