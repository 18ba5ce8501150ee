// Looks at the page as an accessibility checker does and returns what is wrong.
(() => {
  const wrong = [];
  const what = (el) => `<${el.tagName.toLowerCase()}${el.id ? " id=" + el.id : ""}> "${(el.textContent || "").trim().slice(0, 40)}"`;
  const seen = (el) => el.checkVisibility({ visibilityProperty: true }) && !el.closest(".unseen, .skip");
  const all = (selector) => [...document.querySelectorAll(selector)];

  if (!document.documentElement.lang) wrong.push("the document says no language");
  if (!document.title) wrong.push("the document has no title");
  if (all("main").length !== 1) wrong.push("there is not one main part");
  const ids = all("[id]").map((el) => el.id);
  for (const id of ids.filter((id, i) => ids.indexOf(id) !== i)) wrong.push(`two elements have the id ${id}`);
  for (const el of all("input, select, textarea")) if (!el.labels.length && !el.ariaLabel) wrong.push(`${what(el)} has no label`);
  for (const el of all("button, a")) if (!(el.textContent.trim() || el.ariaLabel)) wrong.push(`${what(el)} has no name`);
  for (const el of all("[role=img]")) if (!el.ariaLabel) wrong.push(`${what(el)} has no label`);
  for (const el of all("[aria-labelledby], [aria-describedby]")) {
    for (const name of ["aria-labelledby", "aria-describedby"]) {
      const id = el.getAttribute(name);
      if (id && !document.getElementById(id)) wrong.push(`${what(el)}: ${name} names ${id}, which is not there`);
    }
  }
  for (const el of all("th")) if (!el.scope) wrong.push(`${what(el)} has no scope`);
  for (const el of all("[tabindex]")) if (el.tabIndex > 0) wrong.push(`${what(el)} has a tabindex of its own`);
  for (const el of all("button, input")) {
    const box = el.getBoundingClientRect();
    if (seen(el) && (box.height < 24 || box.width < 24)) wrong.push(`${what(el)} is too small to hit`);
  }

  let level = 0;
  for (const el of all("h1, h2, h3, h4, h5, h6").filter((el) => !el.closest("dialog"))) {
    const next = Number(el.tagName[1]);
    if (next > level + 1) wrong.push(`${what(el)} follows a heading of level ${level}`);
    level = next;
  }
  if (all("h1").length !== 1) wrong.push("there is not one h1");

  if (document.documentElement.scrollWidth > document.documentElement.clientWidth) {
    wrong.push(`the page is ${document.documentElement.scrollWidth} wide in a window of ${document.documentElement.clientWidth}`);
  }

  const parse = (color) => {
    const m = color.match(/^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/);
    return m ? [Number(m[1]), Number(m[2]), Number(m[3]), m[4] === undefined ? 1 : Number(m[4])] : null;
  };
  const luminance = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let least = 21;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const el = node.parentElement;
    if (!node.data.trim() || !seen(el) || el.closest("script, style")) continue;
    const text = parse(getComputedStyle(el).color);
    let ground = null;
    for (let up = el; up && !ground; up = up.parentElement) {
      const c = parse(getComputedStyle(up).backgroundColor);
      if (!c) wrong.push(`${what(up)} has a background that cannot be judged`);
      if (c && c[3] === 1) ground = c;
      else if (c && c[3] > 0) wrong.push(`${what(up)} has a background that is half transparent`);
    }
    if (!text || !ground) { wrong.push(`${what(el)} has a colour that cannot be judged`); continue; }
    const [light, dark] = [luminance(text), luminance(ground)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    least = Math.min(least, ratio);
    if (ratio < 4.5) wrong.push(`${what(el)} has a contrast of ${ratio.toFixed(2)}`);
  }
  return { wrong: [...new Set(wrong)], contrast: least };
})()
