// What an accessibility checker would say about the page, as a list of complaints. Each rule names
// the WCAG 2.2 success criterion it stands for.
(() => {
  const found = [];
  const say = (rule, node, why = "") =>
    found.push(`${rule}: <${node.tagName.toLowerCase()}> ${(node.id || node.className.baseVal || node.className || "").toString().slice(0, 40)} "${(node.textContent || "").trim().slice(0, 40)}" ${why}`);
  const shown = (node) => node.getClientRects().length > 0 && getComputedStyle(node).visibility !== "hidden";
  const name = (node) => {
    const by = node.getAttribute("aria-labelledby");
    if (by) return by.split(/\s+/).map((id) => document.getElementById(id)?.textContent || "").join(" ").trim();
    return (node.getAttribute("aria-label") || node.textContent || node.getAttribute("title") || "").trim();
  };

  if (!document.documentElement.lang) found.push("3.1.1 language of page missing");
  if (!document.title.trim()) found.push("2.4.2 title missing");
  if (document.querySelectorAll("main").length !== 1) found.push("1.3.1 exactly one main expected");
  if (document.querySelectorAll("h1").length !== 1) found.push("1.3.1 exactly one h1 expected");

  const ids = new Map();
  document.querySelectorAll("[id]").forEach((n) => {
    if (n.closest("svg")) return; // Plotly's own
    if (ids.has(n.id)) say("4.1.1 duplicate id", n);
    ids.set(n.id, n);
  });
  document.querySelectorAll("[aria-labelledby]").forEach((n) => {
    if (!name(n)) say("4.1.2 aria-labelledby leads nowhere", n);
  });
  document.querySelectorAll("button, a[href], [role=img], [role=region], section, summary").forEach((n) => {
    if (shown(n) && !name(n)) say("4.1.2 no accessible name", n);
  });
  document.querySelectorAll("button[aria-label], a[aria-label]").forEach((n) => {
    const seen = (n.innerText || "").trim().toLowerCase();
    if (seen && !name(n).toLowerCase().includes(seen)) say("2.5.3 label is not in the name", n, name(n));
  });
  const regions = new Map();
  document.querySelectorAll("section, [role=region]").forEach((n) => {
    if (!shown(n)) return;
    if (regions.has(name(n))) say("1.3.1 two regions of one name", n, name(n));
    if (n.hasAttribute("aria-label") || n.hasAttribute("aria-labelledby")) regions.set(name(n), n);
  });
  [...document.body.children].forEach((n) => {
    if (shown(n) && (n.innerText || "").trim() && !n.matches("header, main, footer, nav, .skip, script")) {
      say("1.3.1 content outside of the landmarks", n);
    }
  });
  document.querySelectorAll("a[href^='#']").forEach((n) => {
    if (!document.getElementById(n.getAttribute("href").slice(1))) say("2.4.1 link to nowhere", n);
  });
  document.querySelectorAll("[tabindex]").forEach((n) => {
    if (n.tabIndex > 0) say("2.4.3 positive tabindex", n);
  });
  let level = 0;
  document.querySelectorAll("h1, h2, h3, h4, h5, h6").forEach((n) => {
    const next = Number(n.tagName[1]);
    if (next > level + 1) say("1.3.1 heading level skipped", n, `after h${level}`);
    level = next;
  });
  document.querySelectorAll("table").forEach((table) => {
    if (!table.querySelector("thead th[scope=col]")) say("1.3.1 table without column headers", table);
    table.querySelectorAll("tbody tr").forEach((row) => {
      if (!row.querySelector("th[scope=row]")) say("1.3.1 row without header", row);
    });
  });
  document.querySelectorAll("dl").forEach((list) => {
    if (!list.querySelector("dt") || !list.querySelector("dd")) say("1.3.1 list without terms", list);
  });
  document.querySelectorAll("*").forEach((n) => {
    const style = getComputedStyle(n);
    const scrolls = ["auto", "scroll"].includes(style.overflowX) && n.scrollWidth > n.clientWidth + 1;
    if (scrolls && shown(n) && n.tabIndex < 0 && !n.closest("svg")) say("2.1.1 scrolls but takes no focus", n);
  });

  // 1.4.3: contrast of every visible text against what is behind it.
  const parse = (text) => {
    const m = text.match(/[\d.]+/g);
    return m ? [Number(m[0]), Number(m[1]), Number(m[2]), m.length > 3 ? Number(m[3]) : 1] : [0, 0, 0, 0];
  };
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3])).concat(1);
  const behind = (node) => {
    const layers = [];
    for (let n = node; n; n = n.parentElement) {
      const colour = parse(getComputedStyle(n).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || seen.has(node) || !shown(node) || node.closest("script, style, .sr")) continue;
    seen.add(node);
    if (node.closest("[data-chart='heatmap']")) continue; // its cells are drawn, not backgrounds
    const style = getComputedStyle(node);
    const colour = parse(node.closest("svg") ? style.fill : style.color);
    const under = behind(node.closest("svg")?.parentElement || node);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const got = ratio(over(colour, under), under);
    if (got < (large ? 3 : 4.5)) say("1.4.3 contrast", node, `${got.toFixed(2)} of ${large ? 3 : 4.5}`);
  }
  return found;
})()
