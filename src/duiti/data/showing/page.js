
"use strict";
/* Shows the rows of the page one at a time. Texts are only ever set as textContent. */
(() => {
  const byId = (id) => document.getElementById(id);
  const viewer = byId("viewer");
  if (!viewer) return;
  const { words, rows } = JSON.parse(byId("data").textContent);
  const [text, place, detail, map, wanted] = ["text", "place", "token", "map", "wanted"].map(byId);
  const hint = matchMedia("(hover: none)").matches
    ? "Tap a token to see what it is."
    : "Point at a token to see what it is. Keys: ← → for rows; in the text, for tokens.";
  let current = 0;

  const make = (name, className, content) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (content !== undefined) element.textContent = content;
    return element;
  };
  const count = (number) => number.toLocaleString("en");

  /* Odd segments stand for what is invisible. */
  const fill = (element, segments, change) => {
    segments.forEach((segment, index) => {
      if (!segment) return;
      element.append(index % 2 ? make("i", "", change(segment, true)) : change(segment, false));
    });
    return element;
  };
  const inText = (segment, isEscape) => (isEscape ? segment.replaceAll("⏎", "⏎\n") : segment);
  const inDetail = (segment, isEscape) => (isEscape ? segment : segment.replaceAll(" ", "␣"));

  const tokenOf = (row, index) => {
    const [, isSpecial, ...segments] = words[row.words[index]];
    const token = fill(make("span", isSpecial ? "special" : ""), segments, inText);
    token.dataset.i = index;
    token.tabIndex = -1;
    return token;
  };

  const middle = (row) => row.words.length - Math.floor(row.words.length / 2);
  const position = (row, index) =>
    index < middle(row) ? index : index + row.tokens - row.words.length;
  const runAt = (row, index) => row.runs.find(([start, length]) => index >= start && index < start + length);

  /* Tokens between the trained runs and the gap of a long row are given. */
  const draw = (row) => {
    const parts = document.createDocumentFragment();
    const hidden = row.tokens - row.words.length;
    let at = 0;
    const given = (end) => {
      if (at >= end) return;
      const run = make("span", "run");
      for (; at < end; at++) run.append(tokenOf(row, at));
      parts.append(run);
    };
    let isGapDue = hidden > 0;
    const gap = () => {
      given(middle(row));
      parts.append(make("span", "gap", `… ${count(hidden)} tokens not shown …`));
      isGapDue = false;
    };
    for (const [start, length, weight] of row.runs) {
      if (isGapDue && start >= middle(row)) gap();
      given(start);
      const run = make("mark", "run");
      if (weight !== 1) run.append(make("b", "weight", `×${weight}`));
      for (; at < start + length; at++) run.append(tokenOf(row, at));
      parts.append(run);
    }
    if (isGapDue) gap();
    given(row.words.length);
    text.replaceChildren(parts);
  };

  /* Where in the row its trained tokens are; what is not shown leaves a hole. */
  const drawMap = (row) => {
    const part = (className, start, length) => {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      if (className) rect.setAttribute("class", className);
      rect.setAttribute("x", `${(100 * start) / row.tokens}%`);
      rect.setAttribute("width", `${Math.max(0.3, (100 * length) / row.tokens)}%`);
      rect.setAttribute("height", "100%");
      return rect;
    };
    const parts = row.runs.map(([start, length]) => part("", position(row, start), length));
    const hidden = row.tokens - row.words.length;
    if (hidden) parts.push(part("missing", middle(row), hidden));
    map.replaceChildren(...parts);
  };

  const show = (index) => {
    current = Math.min(Math.max(index, 0), rows.length - 1);
    const row = rows[current];
    draw(row);
    drawMap(row);
    place.replaceChildren(
      make("b", "", `${count(current + 1)} / ${count(rows.length)}`), " ",
      make("span", "file", row.origin), " ",
      make("span", "note", `${count(row.trained)} of ${count(row.tokens)} tokens trained`),
    );
    byId("previous").disabled = current === 0;
    byId("next").disabled = current === rows.length - 1;
    if (text.firstElementChild) text.querySelector("[data-i]").tabIndex = 0;
    detail.textContent = hint;
    try { history.replaceState(null, "", `#${current + 1}`); } catch { /* not on this address */ }
  };

  const point = (token) => {
    const before = text.querySelector(".current");
    if (before === token) return;
    if (before) before.classList.remove("current");
    if (!token) { detail.textContent = hint; return; }
    token.classList.add("current");
    const row = rows[current];
    const index = Number(token.dataset.i);
    const [id, isSpecial, ...segments] = words[row.words[index]];
    const run = runAt(row, index);
    const is = !run ? "given" : run[2] === 1 ? "trained" : `trained ×${run[2]}`;
    detail.replaceChildren(
      fill(make("code"), segments, inDetail), " ",
      make("span", "", `id ${id}`), " ",
      make("span", run ? "is" : "", is), " ",
      make("span", "", `token ${count(position(row, index) + 1)} of ${count(row.tokens)}`),
      isSpecial ? " " : "", isSpecial ? make("span", "", "control token") : "",
    );
  };

  const focus = (token) => {
    if (!token) return;
    for (const other of text.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    token.tabIndex = 0;
    token.focus();
  };

  const nearest = (event) => event.target.closest?.("#text [data-i]");
  text.addEventListener("mouseover", (event) => { const token = nearest(event); if (token) point(token); });
  text.addEventListener("mouseleave", () => point(text.contains(document.activeElement) ? document.activeElement : null));
  text.addEventListener("click", (event) => focus(nearest(event)));
  text.addEventListener("focusin", (event) => point(nearest(event)));
  text.addEventListener("focusout", () => point(null));

  byId("previous").addEventListener("click", () => show(current - 1));
  byId("next").addEventListener("click", () => show(current + 1));

  /* By origin, by the end of one, by line, or by number. */
  byId("jump").addEventListener("submit", (event) => {
    event.preventDefault();
    const sought = wanted.value.trim();
    const tests = [
      (row) => row.origin === sought,
      (row) => row.origin.endsWith(`:${sought}`) || row.origin.endsWith(`/${sought}`),
      (row) => row.origin.includes(sought),
    ];
    const found = tests.map((test) => rows.findIndex(test)).find((index) => index >= 0);
    const isFound = sought !== "" && found !== undefined;
    wanted.setAttribute("aria-invalid", String(!isFound));
    if (isFound) show(found);
    else detail.textContent = `No row shown here is called ${sought || "that"}.`;
  });

  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest?.("input")) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const token = nearest(event);
    if (token) {
      const tokens = text.querySelectorAll("[data-i]");
      const index = Number(token.dataset.i);
      if (step) focus(tokens[index + step]);
      else if (event.key === "Home") focus(tokens[0]);
      else if (event.key === "End") focus(tokens[tokens.length - 1]);
      else if (event.key === "Escape") token.blur();
      else return;
    } else if (step) show(current + step);
    else return;
    event.preventDefault();
  });

  byId("origins").append(...rows.map((row) => {
    const option = make("option");
    option.value = row.origin;
    return option;
  }));
  byId("static").hidden = true;
  viewer.hidden = false;
  show((Number.parseInt(location.hash.slice(1), 10) || 1) - 1);
})();
