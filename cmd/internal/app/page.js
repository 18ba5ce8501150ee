"use strict";
// Asks for the status once a second and writes it into the page that the server
// has rendered. Text is only ever set as text.
(() => {
  const id = (name) => document.getElementById(name);
  const set = (name, text, state) => {
    const el = id(name);
    if (el.textContent !== String(text)) el.textContent = text;
    if (state) el.dataset.state = state;
  };
  const cell = (tag, text, numeric) => {
    const el = document.createElement(tag);
    if (tag === "th") el.scope = "row";
    if (numeric) el.className = "n";
    if (text instanceof Node) el.append(text); else el.textContent = text;
    return el;
  };
  const badge = (state) => {
    const el = document.createElement("span");
    el.className = "badge";
    el.dataset.state = state;
    el.textContent = state;
    return el;
  };
  const row = (...cells) => {
    const tr = document.createElement("tr");
    tr.append(...cells);
    return tr;
  };
  const show = (s) => {
    set("role", s.role, s.role);
    set("instance", s.instance);
    set("version", s.version);
    set("ready", s.ready ? "ready" : s.reason, s.ready ? "ok" : "wait");
    set("count-shipped", s.counts.shipped);
    set("count-failed", s.counts.failed);
    set("count-dead", s.counts.dead_lettered);
    set("count-lag", s.partitions.reduce((sum, p) => sum + p.lag, 0));
    id("accounts").replaceChildren(...s.accounts.map((a) => row(
      cell("th", a.name), cell("td", badge(a.state)), cell("td", a.breaker), cell("td", a.rate.toFixed(2), true),
      cell("td", a.in_flight, true), cell("td", a.calls, true), cell("td", a.spent, true), cell("td", a.reason || ""))));
    id("partitions").replaceChildren(...s.partitions.map((p) => row(
      cell("th", p.partition, true), cell("td", p.committed, true), cell("td", p.end, true), cell("td", p.lag, true),
      cell("td", p.oldest_unfinished_seconds.toFixed(0) + " s", true))));
    id("parked-none").hidden = s.parked_shops.length > 0;
    id("parked").replaceChildren(...s.parked_shops.map((p) => {
      const li = document.createElement("li");
      const b = document.createElement("b");
      b.textContent = p.shop_id;
      li.append(b, ` (${p.account}): ${p.reason}`);
      if (p.url && /^https?:/.test(p.url)) {
        const a = document.createElement("a");
        a.href = p.url;
        a.rel = "noreferrer";
        a.textContent = "authorise";
        li.append(" ", a);
      }
      return li;
    }));
    id("ledger").replaceChildren(...Object.entries(s.ledger || {}).filter(([, v]) => typeof v !== "object").map(([k, v]) => {
      const div = document.createElement("div");
      const dt = document.createElement("dt");
      dt.textContent = k.replaceAll("_", " ");
      const dd = document.createElement("dd");
      dd.textContent = typeof v === "number" ? +v.toFixed(2) : v;
      div.append(dt, dd);
      return div;
    }));
  };
  let paused = false;
  const pause = id("pause");
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    pause.setAttribute("aria-pressed", String(paused));
  });
  const poll = async () => {
    if (!paused && !document.hidden) {
      try {
        const answer = await fetch("api/status", { cache: "no-store" });
        if (!answer.ok) throw new Error(answer.status);
        show(await answer.json());
        set("fresh", "as of " + new Date().toLocaleTimeString(), "none");
      } catch (err) {
        set("fresh", "packship does not answer", "gone");
      }
    }
    setTimeout(poll, 1000);
  };
  poll();
})();
