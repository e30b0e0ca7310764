"use strict";
/* What needs a hand: values under the pointer, smoothing, searching, sorting, light or dark, copying.
   All that it adds is added as text; everything else is on the page already. */
(() => {
  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (name, className, content) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (content !== undefined) element.textContent = content;
    return element;
  };
  const draw = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const spoken = (value) =>
    Math.abs(value) >= 1e4 || Number.isInteger(value)
      ? value.toLocaleString("en", { maximumFractionDigits: 0 })
      : Math.abs(value) < 1e-3 && value !== 0 ? value.toExponential(2) : String(Number(value.toPrecision(4)));

  /* Light or dark: the rules for dark are switched on or off, whatever the system prefers. */
  const dark = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules])
    .filter((rule) => rule.media && rule.media.mediaText.includes("prefers-color-scheme"));
  const system = "(prefers-color-scheme: dark)";
  const themes = ["auto", "light", "dark"];
  const theme = byId("theme");
  const wear = (name) => {
    for (const rule of dark) rule.media.mediaText = { auto: system, light: "not all", dark: "screen" }[name];
    document.documentElement.style.colorScheme = name === "auto" ? "" : name;
    theme.textContent = `Theme: ${name}`;
    theme.dataset.now = name;
  };
  theme.addEventListener("click", () => {
    wear(themes[(themes.indexOf(theme.dataset.now) + 1) % themes.length]);
  });
  theme.hidden = false;
  wear("auto");

  /* Charts */
  const charts = JSON.parse(byId("data").textContent).map((data, index) => {
    const figure = document.querySelector(`[data-chart="${index}"]`);
    return { data, figure, svg: figure.querySelector(".chart"), inner: figure.querySelector(".chart > svg"),
      frame: figure.querySelector(".frame"), readout: figure.querySelector(".readout") };
  });
  const place = ([low, high, isLog], value) =>
    isLog ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);
  const value = ([low, high, isLog], share) =>
    isLog ? low * Math.exp(share * Math.log(high / low)) : low + share * (high - low);

  /* The same mean as in duiti.report.charts.smoothed. */
  const smoothed = (values, weight) => {
    const keep = weight > 0 ? weight ** (100 / Math.max(100, values.length)) : 0;
    const oneWay = (each) => {
      let sum = 0, total = 0;
      return each.map((one) => {
        sum = keep * sum + (1 - keep) * one;
        total = keep * total + (1 - keep);
        return [sum, total];
      });
    };
    const right = oneWay([...values].reverse()).reverse();
    return oneWay(values).map(([sum, total], i) => (sum + right[i][0]) / (total + right[i][1]));
  };
  const redraw = (weight) => {
    for (const chart of charts) {
      for (const line of chart.data.lines.filter((each) => each.smooth)) {
        const xs = line.meanX ?? line.x, ys = smoothed(line.meanY ?? line.y, weight);
        const points = xs.map((x, i) =>
          `${Math.round(1000 * place(chart.data.x, x))} ${Math.round(1000 * (1 - place(chart.data.y, ys[i])))}`);
        chart.inner.querySelector(`.smooth.${line.name}`).setAttribute("d", `M${points.join("L")}`);
      }
    }
  };
  const smooth = byId("smooth");
  if (smooth && charts.some((chart) => chart.data.lines.some((line) => line.smooth))) {
    byId("smoothing").hidden = false;
    smooth.addEventListener("input", () => {
      byId("smoothing").querySelector("output").textContent = smooth.value;
      redraw(Number(smooth.value));
    });
  }

  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
  };
  const longest = (data) => data.lines.reduce((a, b) => (b.x.length > a.x.length ? b : a));
  const hide = (chart) => {
    for (const mark of all(".cursor", chart.svg)) mark.remove();
    chart.readout.querySelector(".now")?.remove();
  };
  const show = (chart, wanted) => {
    hide(chart);
    const { data, svg, readout } = chart;
    const { x: xs } = longest(data);
    const x = xs[nearest(xs, wanted)];
    const at = `${100 * place(data.x, x)}%`;
    svg.append(draw("line", { class: "cursor", x1: at, x2: at, y1: 0, y2: "100%" }));
    const now = make("span", "now", `${data.label} ${spoken(x)}`);
    for (const line of data.lines) {
      const index = nearest(line.x, x);
      svg.append(draw("circle", { class: `cursor ${line.name}`, r: 4, cx: `${100 * place(data.x, line.x[index])}%`,
        cy: `${100 * (1 - place(data.y, line.y[index]))}%` }));
      const where = line.x[index] === x ? "" : ` (at ${spoken(line.x[index])})`;
      now.append(` · ${line.label} `, make("b", "", spoken(line.y[index])), where);
    }
    readout.append(now);
  };
  /* Curves of training share their steps: what is pointed at in one is shown in all. */
  const point = (chart, x) => {
    const alike = charts.filter((other) => other === chart || (chart.data.label === "step" && other.data.label === "step"));
    for (const other of alike) {
      if (x === null) hide(other);
      else show(other, other === chart ? x : clamp(x, other.data.x[0], other.data.x[1]));
    }
  };
  for (const chart of charts) {
    const { frame, data } = chart;
    const line = longest(data);
    let index = line.x.length - 1;
    const move = (to) => { index = clamp(to, 0, line.x.length - 1); point(chart, line.x[index]); };
    frame.tabIndex = 0;
    frame.setAttribute("role", "slider");
    const told = () => {
      frame.setAttribute("aria-valuenow", String(index));
      frame.setAttribute("aria-valuetext", chart.readout.querySelector(".now")?.textContent ?? "");
    };
    frame.setAttribute("aria-valuemin", "0");
    frame.setAttribute("aria-valuemax", String(line.x.length - 1));
    told();
    frame.addEventListener("pointermove", (event) => {
      const box = frame.getBoundingClientRect();
      move(nearest(line.x, value(data.x, clamp((event.clientX - box.left) / box.width, 0, 1))));
    });
    frame.addEventListener("pointerleave", () => point(chart, null));
    frame.addEventListener("focus", () => { move(index); told(); });
    frame.addEventListener("blur", () => point(chart, null));
    frame.addEventListener("keydown", (event) => {
      const far = Math.max(1, Math.round(line.x.length / 10));
      const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: far, PageDown: -far, Home: -Infinity, End: Infinity }[event.key];
      if (step === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      move(index + step);
      told();
      event.preventDefault();
    });
  }

  /* Samples: searched, sorted, a few at first. */
  const FEW = 8;
  const list = byId("samples");
  const form = byId("find");
  if (list && form) {
    const samples = all(".sample", list);
    const texts = samples.map((sample) => sample.textContent.toLowerCase());
    const sought = byId("sought"), order = byId("order"), more = byId("all"), found = byId("found");
    let isAll = samples.length <= FEW;
    const key = {
      number: (sample) => Number(sample.dataset.number),
      gain: (sample) => -Number(sample.dataset.gain ?? -Infinity),
      "-gain": (sample) => Number(sample.dataset.gain ?? Infinity),
      loss: (sample) => -Number(sample.dataset.loss ?? -Infinity),
    };
    const update = () => {
      const word = sought.value.trim().toLowerCase();
      const matches = new Set(samples.filter((_, index) => texts[index].includes(word)));
      const by = key[order ? order.value : "number"];
      const sorted = [...samples].sort((a, b) => by(a) - by(b) || a.dataset.number - b.dataset.number);
      list.append(...sorted);
      const limit = isAll || word ? Infinity : FEW;
      let shown = 0;
      for (const sample of sorted) sample.hidden = !(matches.has(sample) && shown++ < limit);
      found.textContent = word ? `${matches.size} of ${samples.length}` : `${samples.length} questions`;
      more.hidden = limit === Infinity || matches.size <= FEW;
      more.textContent = `Show all ${samples.length}`;
    };
    form.hidden = samples.length < 2;
    form.addEventListener("submit", (event) => event.preventDefault());
    sought.addEventListener("input", update);
    order?.addEventListener("change", update);
    more.addEventListener("click", () => { isAll = true; update(); });
    addEventListener("beforeprint", () => { isAll = true; update(); });
    update();
  }

  /* Tokens: one stop for the tab key in each list, then arrows. */
  for (const tokens of all("[data-tokens]")) {
    const after = all("b", tokens);
    const before = all("b", tokens.closest("dl").querySelector(".heat"));
    const told = make("p", "told", "");
    told.setAttribute("role", "status");
    tokens.closest("dl").after(told);
    const tell = (index) => {
      for (const old of [...before, ...after]) old.classList.remove("current");
      if (index < 0) { told.textContent = ""; return; }
      before[index].classList.add("current");
      told.replaceChildren("token ", make("b", "", String(index + 1)), ` of ${after.length} · loss `,
        make("b", "", after[index].title), " nats");
    };
    const focus = (index) => {
      const token = after[clamp(index, 0, after.length - 1)];
      for (const other of after) other.removeAttribute("tabindex");
      token.tabIndex = 0;
      token.focus();
    };
    const indexOf = (event) => {
      const token = event.target.closest("b");
      return Math.max(after.indexOf(token), before.indexOf(token));
    };
    const root = tokens.closest("dl");
    root.addEventListener("mouseover", (event) => { if (event.target.closest("b")) tell(indexOf(event)); });
    root.addEventListener("mouseleave", () => tell(after.indexOf(document.activeElement)));
    root.addEventListener("click", (event) => { if (event.target.closest("b")) focus(indexOf(event)); });
    tokens.addEventListener("focusin", (event) => tell(indexOf(event)));
    tokens.addEventListener("focusout", () => tell(-1));
    tokens.addEventListener("keydown", (event) => {
      const index = after.indexOf(event.target);
      const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: after.length - 1 }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      focus(to);
      event.preventDefault();
    });
  }

  /* Commands can be copied where the browser allows it. */
  if (navigator.clipboard) {
    for (const command of all(".command")) {
      const button = make("button", "", "Copy");
      button.type = "button";
      button.setAttribute("aria-label", `Copy: ${command.textContent.trim()}`);
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(command.querySelector("code").textContent);
          button.textContent = "Copied";
        } catch { button.textContent = "Select it"; }
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
      command.append(button);
    }
  }
})();
