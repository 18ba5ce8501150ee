"use strict";
// Fetches the page again once a second and puts what has changed into the one
// that is shown: the server alone knows how a state is told. Asks before an
// action, and sends it with the admin token, which is kept nowhere but here.
(() => {
  const id = (name) => document.getElementById(name);
  const root = document.documentElement;
  root.dataset.script = "on";
  let paused = false;
  let answered = Date.now(); // when what is shown came
  let asked = 0; // since when packship is asked and does not answer

  // A button that is replaced while somebody presses it is not clicked, so what
  // can stay does, down to the texts.
  const morph = (old, next) => {
    if (old.nodeType !== next.nodeType || old.nodeName !== next.nodeName || old.id !== next.id) {
      old.replaceWith(next);
      return;
    }
    if (!(old instanceof Element)) {
      if (old.data !== next.data) old.data = next.data;
      return;
    }
    for (const { name } of [...old.attributes]) if (!next.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of next.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    const children = [...next.childNodes];
    for (const [i, child] of children.entries()) {
      if (i < old.childNodes.length) morph(old.childNodes[i], child);
      else old.append(child);
    }
    while (old.childNodes.length > children.length) old.lastChild.remove();
  };

  const renew = (fresh) => {
    if (!fresh.getElementById("hero")) throw new Error("another page"); // a login, say
    for (const old of document.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(old.id);
      if (!next) continue;
      const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
      morph(old, next);
      if (focused && document.activeElement === document.body) id(focused)?.focus();
    }
    document.title = fresh.title;
  };

  const span = (ms) => {
    const seconds = Math.round(ms / 1000);
    if (seconds < 120) return `${seconds}\u00a0s`;
    return seconds < 7200 ? `${Math.round(seconds / 60)}\u00a0min` : `${Math.round(seconds / 3600)}\u00a0h`;
  };

  // Says that what is shown is old. A tab that nobody sees asks seldom, so the
  // age alone says little of packship.
  const late = 3000, seldom = 30000, oldest = 90000;
  const state = () => {
    const age = Date.now() - answered;
    const gone = !paused && (asked > 0 && Date.now() - asked >= late || age >= oldest);
    root.dataset.liveState = gone ? "gone" : paused ? "paused" : "live";
    id("gone").hidden = !gone && !paused;
    const why = gone ? "packship does not answer. What stands below is old:" : paused ? "You have stopped the updates. What stands below is old:" : "";
    if (id("gone-why").textContent !== why) id("gone-why").textContent = why;
    id("gone-for").textContent = span(age);
    if (gone) document.title = "No answer · packship";
    if (paused) document.title = "Not updated · packship";
  };

  let busy = false;
  const poll = async () => {
    if (busy || paused || document.hidden && Date.now() - answered < seldom) return;
    busy = true;
    asked ||= Date.now();
    try {
      const answer = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error(answer.status);
      const text = await answer.text();
      if (paused) return; // meanwhile
      renew(new DOMParser().parseFromString(text, "text/html"));
      answered = Date.now();
      asked = 0;
    } catch {
      // state says for how long there has been no answer.
    } finally {
      busy = false;
    }
    state();
  };
  setInterval(() => { state(); poll(); }, 1000);
  document.addEventListener("visibilitychange", poll);
  id("pause").addEventListener("click", (event) => {
    paused = !paused;
    asked = 0;
    event.target.textContent = paused ? "Go on updating" : "Stop updating";
    event.target.setAttribute("aria-pressed", String(paused));
    if (paused) state();
    else poll();
  });

  const ask = id("ask");
  let path = "";
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-post]");
    if (!button) return;
    path = button.dataset.post;
    id("ask-title").textContent = button.dataset.title;
    id("ask-text").textContent = button.dataset.text;
    id("ask-yes").textContent = button.textContent.replace("…", "");
    id("ask-error").textContent = "";
    ask.showModal();
    id("token").focus();
  });
  id("ask-no").addEventListener("click", () => ask.close());
  id("ask-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const yes = id("ask-yes");
    yes.disabled = true;
    id("ask-error").textContent = "";
    try {
      const answer = await fetch(path, {
        method: "POST", headers: { Authorization: `Bearer ${id("token").value}` }, signal: AbortSignal.timeout(10000),
      });
      const said = await answer.json();
      if (answer.ok) {
        ask.close();
        did(said.note ? `Nothing comes of it: ${said.note}.` : `Done: ${yes.textContent.toLowerCase()} ${said.account || "shop " + said.shop_id}. What comes of it is shown as soon as an order has been tried.`);
      } else {
        if (answer.status === 401) id("token").value = "";
        id("ask-error").textContent = answer.status === 401 ? "The token is wrong. Nothing was done." : `Not done: ${said.error}.`;
        id("token").focus();
      }
    } catch {
      id("ask-error").textContent = "packship does not answer; whether it was done is not known.";
    } finally {
      yes.disabled = false;
    }
    poll();
  });
  let clear;
  const did = (text) => {
    id("did").textContent = text;
    clearTimeout(clear);
    clear = setTimeout(() => { id("did").textContent = ""; }, 8000);
  };
})();
