"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const HUES = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"]; // Okabe and Ito 2008
  const el = (id) => document.getElementById(id);
  const make = (tag, text, attributes = {}) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const show = (id) => { el(id).hidden = false; };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const number = (x, digits = 3) => x === null || x === undefined ? "–" : Number(x).toLocaleString("en", {maximumSignificantDigits: digits});
  const options = (select, values, labels = values) => {
    select.replaceChildren(...values.map((value, i) => make("option", labels[i], {value})));
  };
  const tint = (hue, alpha) => hue + Math.round(alpha * 255).toString(16).padStart(2, "0");

  const names = Object.keys(data.layers);
  const layerOf = () => el("layer").value;
  const partOf = () => el("part").value;
  const charts = [];

  // A chart with its words for a screen reader, and its numbers as a table that is made when it is opened.
  function put(id, options, rows) {
    const box = el(id);
    const wasOpen = box.querySelector("details")?.open ?? false;
    const width = Math.max(280, Math.min(980, box.clientWidth || 640));
    const figure = Plot.plot({width, marginLeft: 52, style: {background: "transparent", color: "inherit", fontSize: "12px"}, ...options(width)});
    for (const svg of [figure, ...figure.querySelectorAll("svg")]) if (svg.tagName === "svg") svg.setAttribute("role", "img");
    const svg = figure.tagName === "svg" ? figure : [...figure.querySelectorAll("svg")].at(-1);
    svg.setAttribute("aria-label", options(width).ariaLabel);
    for (const ramp of figure.querySelectorAll("svg")) if (ramp !== svg) ramp.setAttribute("aria-label", "Scale of colours");
    for (const mark of figure.querySelectorAll("g[aria-label]")) mark.removeAttribute("aria-label"); // the picture has its own
    const details = make("details");
    details.append(make("summary", "Show as a table"));
    const fill = () => {
      if (!details.open || details.children.length > 1) return;
      const {head, body} = rows();
      const table = make("table"), top = make("thead"), row = make("tr");
      row.append(...head.map((text) => make("th", text, {scope: "col"})));
      top.append(row);
      const inner = make("tbody");
      for (const cells of body) {
        const line = make("tr");
        line.append(...cells.map((cell) => typeof cell === "number" || cell === null ? make("td", number(cell, 4), {class: "n"}) : make("td", cell)));
        inner.append(line);
      }
      table.append(top, inner);
      const scroll = make("div", undefined, {class: "scroll", tabindex: "0", role: "region", "aria-label": options(width).ariaLabel});
      scroll.append(table);
      details.append(scroll);
    };
    details.addEventListener("toggle", fill);
    details.open = wasOpen;
    box.replaceChildren(figure, details);
    fill();
  }

  const heat = () => dark.matches ? ["#161b22", "#1f6feb", "#cae8ff"] : ["#ffffff", "#6baed6", "#08306b"];
  // A chart is drawn when it comes near the screen, or is printed.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) start(charts.find((each) => each.section === entry.target));
  }, {rootMargin: "400px"});
  function start(each) {
    if (each.drawn) return;
    each.drawn = true;
    near.unobserve(each.section);
    each.draw();
  }
  const chart = (id, draw) => {
    show(id);
    charts.push({section: el(id), draw, drawn: false});
  };

  // Loss and throughput.
  const curves = (parts) => data.curves.filter((curve) => parts.includes(curve.part));
  function lines(parts, label, x, title) {
    const all = curves(parts);
    const points = all.flatMap((curve) => curve.y.map((y, i) => ({x: curve[x][i], y, model: curve.label, part: curve.part, key: curve.label + curve.part})))
      .filter((point) => point.y !== null && point.x !== null);
    const models = [...new Set(all.map((curve) => curve.label))];
    const faint = points.filter((point) => point.part === "train"), strong = points.filter((point) => point.part !== "train");
    const main = strong.length ? strong : faint;
    const ys = points.map((point) => point.y).sort(d3.ascending);
    return {
      ariaLabel: title, height: 300, x: {label: x, grid: false}, y: {label, grid: true, domain: [ys[0], d3.quantile(ys, 0.98)], clamp: true},
      color: {legend: true, domain: models, range: models.map((name) => name === "dense" ? (dark.matches ? "#9aa4af" : "#6e7781") : (dark.matches ? "#6cb6ff" : "#0b57a4"))},
      marks: [
        Plot.lineY(faint, {x: "x", y: "y", z: "key", stroke: "model", strokeOpacity: strong.length ? 0.35 : 1, strokeDasharray: (d) => d[0]?.model === "dense" ? "4 3" : null}),
        Plot.lineY(strong, {x: "x", y: "y", z: "key", stroke: "model", strokeWidth: 2}),
        Plot.dot(strong, {x: "x", y: "y", stroke: "model", symbol: "model", r: 3}),
        Plot.tip(main, Plot.pointer({x: "x", y: "y", channels: {model: "model"}})),
      ],
    };
  }
  const curveRows = (parts, label) => () => ({
    head: ["model", "part", "step", label],
    body: curves(parts).flatMap((curve) => curve.y.map((y, i) => [curve.label, curve.part, curve.step[i], y])),
  });
  if (curves(["train", "val"]).length) {
    const xs = ["step", "seconds", "tokens"].filter((x) => data.curves.every((curve) => curve[x]));
    options(el("over"), xs, xs.map((x) => ({step: "steps", seconds: "seconds of training", tokens: "tokens"})[x]));
    chart("loss", () => put("loss-chart", () => lines(["train", "val"], data.metric.label, el("over").value, `${data.metric.label} over ${el("over").value}; validation as bold lines, training as thin ones`), curveRows(["train", "val"], data.metric.label)));
  }
  if (curves(["speed"]).length)
    chart("speed", () => put("speed-chart", () => ({...lines(["speed"], "tokens per second", "step", "Tokens per second over steps"), height: 200}), curveRows(["speed"], "tokens per second")));

  // Layers.
  const recorded = (part) => names.filter((name) => data.layers[name][part]);
  const parts = ["train", "val"].filter((part) => recorded(part).length);
  const log = () => data.layers[layerOf()]?.[partOf()];
  if (names.length) {
    options(el("layer"), names);
    options(el("part"), parts, parts.map((part) => ({train: "training", val: "validation"})[part]));
    el("part").closest("label").hidden = parts.length < 2;
    show("controls");
  }
  const loads = new Map();
  function loadsOf(name, part) {
    const key = `${part} ${name}`;
    if (!loads.has(key)) loads.set(key, bytes(data.layers[name][part].load));
    return loads.get(key);
  }
  if (parts.length) {
    const slider = el("frame");
    const frames = () => data.layers[recorded(partOf())[0]][partOf()].frames;
    const resetFrame = () => { slider.max = frames().length - 1; slider.value = slider.max; };
    resetFrame();
    el("part").addEventListener("change", resetFrame);
    chart("load", () => {
      const part = partOf(), frame = Number(slider.value), step = frames()[frame];
      el("frame-step").textContent = step.toLocaleString("en");
      slider.setAttribute("aria-valuetext", `step ${step}`);
      const shown = recorded(part);
      const cells = shown.flatMap((name) => {
        const E = data.layers[name].experts, at = Math.min(frame, data.layers[name][part].frames.length - 1) * E;
        return Array.from(loadsOf(name, part).subarray(at, at + E), (value, expert) => ({name, expert, load: value / 50}));
      });
      put("load-chart", (width) => ({
        ariaLabel: `Load of every expert at step ${step}, as a multiple of a fair share; the table below has the numbers`,
        height: Math.max(90, 26 * shown.length + 60), marginLeft: Math.min(150, 16 + 6.5 * d3.max(shown, (name) => name.length)), padding: 0.04,
        x: {label: "expert", tickFormat: (e) => e % Math.ceil(d3.max(shown, (name) => data.layers[name].experts) / (width / 34)) ? "" : e, tickSize: 0}, y: {label: null, domain: shown},
        color: {type: "linear", domain: [0, 1, 3], range: heat(), clamp: true, legend: true, label: "load, times a fair share"},
        marks: [Plot.cell(cells, {x: "expert", y: "name", fill: "load", stroke: "currentColor", strokeOpacity: 0.15, tip: true, channels: {load: "load"}})],
      }), () => ({head: ["layer", "expert", "load, times a fair share"], body: cells.map((cell) => [cell.name, cell.expert, cell.load])}));
    });
    slider.addEventListener("input", () => redraw());

    const statistics = [...new Set(parts.flatMap((part) => recorded(part).flatMap((name) => Object.keys(data.layers[name][part].series))))];
    options(el("statistic"), statistics);
    chart("statistics", () => {
      const wanted = el("statistic").value, part = partOf();
      const points = recorded(part).flatMap((name) => (data.layers[name][part].series[wanted] ?? []).map((y, i) => ({x: data.layers[name][part].step[i], y, name})))
        .filter((point) => point.y !== null);
      put("statistics-chart", () => ({
        ariaLabel: `${wanted} of every layer over steps, the chosen layer ${layerOf()} emphasised`, height: 260, x: {label: "step"}, y: {label: wanted, grid: true, zero: wanted === "MaxVio"},
        marks: [
          Plot.lineY(points, {x: "x", y: "y", z: "name", stroke: "currentColor", strokeOpacity: 0.25}),
          Plot.lineY(points.filter((point) => point.name === layerOf()), {x: "x", y: "y", stroke: dark.matches ? "#6cb6ff" : "#0b57a4", strokeWidth: 2.5, marker: points.length < 60 ? "dot" : undefined}),
          Plot.tip(points, Plot.pointer({x: "x", y: "y", channels: {layer: "name"}})),
        ],
      }), () => ({head: ["layer", "step", wanted], body: points.map((point) => [point.name, point.x, point.y])}));
    });
  }

  // Domains and classes.
  function matrix(id, labels, share, title, high) {
    const E = share[0].length, fair = 1 / E;
    // Experts by the row that has most of them, then by their share: a specialised layer shows a diagonal.
    const most = d3.range(E).map((e) => d3.greatestIndex(share, (row) => row[e]));
    const order = d3.range(E).sort((a, b) => most[a] - most[b] || share[most[b]][b] - share[most[a]][a]);
    const cells = share.flatMap((row, i) => row.map((value, expert) => ({label: labels[i], expert, times: value / fair, share: value, high: high?.[i][expert]})));
    put(id, (width) => ({
      ariaLabel: title, height: Math.max(100, 28 * labels.length + 60), marginLeft: Math.min(160, 16 + 7 * d3.max(labels, (name) => name.length)), padding: 0.04,
      x: {label: "expert", domain: order, tickFormat: (e, i) => i % Math.ceil(E / (width / 34)) ? "" : e, tickSize: 0}, y: {label: null, domain: labels},
      color: {type: "linear", domain: [0, 1, 4], range: heat(), clamp: true, legend: true, label: "share, times a fair one"},
      marks: [
        Plot.cell(cells, {x: "expert", y: "label", fill: "times", stroke: "currentColor", strokeOpacity: 0.15, tip: true, channels: {share: "share"}}),
        Plot.dot(cells.filter((cell) => cell.high), {x: "expert", y: "label", r: 2.2, fill: dark.matches ? "#0d1117" : "#ffffff", stroke: "currentColor"}),
      ],
    }), () => ({head: ["of", "expert", "share", ...(high ? ["beyond chance"] : [])], body: cells.map((cell) => [cell.label, cell.expert, cell.share, ...(high ? [cell.high ? "yes" : "no"] : [])])}));
  }
  if (data.domains.layers)
    chart("domains", () => {
      const found = data.domains.layers[layerOf()];
      el("domains-chart").hidden = !found;
      if (!found) { el("domains-words").textContent = "This layer reads no text by domain."; return; }
      el("domains-words").textContent = `${found.bits.toFixed(2)} bits of mutual information between expert and domain in ${data.domains.sequences} sequences; chance gives up to ${found.chance.toFixed(2)}. ` +
        (found.found ? `This layer is specialised (p = ${found.p}).` : `This is no more than chance (p = ${found.p}).`) + " A dot marks a cell that is higher than chance allows.";
      matrix("domains-chart", data.domains.names, found.share, `Share of each expert in the pairs of each domain, layer ${layerOf()}`, found.high);
    });
  if (Object.keys(data.classes).length)
    chart("classes", () => {
      const found = data.classes[layerOf()];
      el("classes").hidden = !found;
      if (found) {
        const kept = found.names.map((_, i) => i).filter((i) => found.share[i].some((value) => value > 0));
        matrix("classes-chart", kept.map((i) => found.names[i]), kept.map((i) => found.share[i]), `Share of each expert in the pairs of each class of tokens, layer ${layerOf()}`);
      }
    });

  // Typical tokens.
  const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
  if (Object.values(data.typical).some((experts) => experts.some((tokens) => tokens.length)))
    chart("typical", () => {
      const body = make("tbody");
      (data.typical[layerOf()] ?? []).forEach((tokens, expert) => {
        if (!tokens.length) return;
        const row = make("tr"), cell = make("td");
        for (const token of tokens) {
          const sample = make("span", undefined, {class: "sample"});
          sample.append(make("span", "…" + visible(token.before)), make("b", visible(token.text)), make("span", visible(token.after) + "…"), make("span", ` ${token.count}×`));
          cell.append(sample);
        }
        row.append(make("th", String(expert), {scope: "row"}), cell);
        body.append(row);
      });
      const head = make("thead"), row = make("tr");
      row.append(make("th", "expert", {scope: "col"}), make("th", "typical tokens, underlined, and how often it took them", {scope: "col"}));
      head.append(row);
      el("typical-table").replaceChildren(head, body);
    });

  // A passage.
  const passages = data.passages.filter((passage) => Object.keys(passage.first).length);
  if (passages.length) {
    options(el("passage-text"), passages.map((_, i) => String(i)), passages.map((passage) => passage.domain));
    let chosen = "";
    chart("passage", () => {
      const passage = passages[Number(el("passage-text").value)], first = passage.first[layerOf()];
      el("passage").hidden = !first;
      if (!first) return;
      const counts = d3.rollups(first.filter((e) => e >= 0), (some) => some.length, (e) => e).sort((a, b) => b[1] - a[1] || a[0] - b[0]);
      const coloured = new Map(counts.slice(0, HUES.length).map(([expert], i) => [expert, HUES[i]]));
      chosen = el("passage-expert").value;
      options(el("passage-expert"), ["", ...counts.map(([expert]) => String(expert))], ["no expert", ...counts.map(([expert, count]) => `expert ${expert} (${count})`)]);
      el("passage-expert").value = counts.some(([expert]) => String(expert) === chosen) ? chosen : "";
      const only = el("passage-expert").value;
      el("passage-words").textContent = `Layer ${layerOf()}: ${counts.length} experts are first choice of the ${first.length} tokens.` +
        (only ? ` Expert ${only} has ${first.filter((e) => String(e) === only).length} of them, outlined.` : "");
      el("passage-legend").replaceChildren(...[...coloured].map(([expert, hue]) => {
        const item = make("li"), swatch = make("span", undefined, {class: "swatch"});
        swatch.style.background = tint(hue, 0.42);
        item.append(swatch, `expert ${expert}`);
        return item;
      }));
      if (counts.length > HUES.length) el("passage-legend").append(make("li", "no colour: others"));
      el("passage-tokens").replaceChildren(...passage.tokens.map((text, i) => {
        const token = make("span", text.replaceAll("\n", "↵\n"), {title: first[i] < 0 ? "no expert" : `expert ${first[i]}`});
        const hue = coloured.get(first[i]);
        if (hue && (!only || String(first[i]) === only)) token.style.background = tint(hue, 0.42);
        if (only && String(first[i]) === only) token.className = "on";
        return token;
      }));
    });
    for (const id of ["passage-text", "passage-expert"]) el(id).addEventListener("change", () => redraw());
  }

  // Pairs and bias.
  if (Object.keys(data.pairs).length)
    chart("pairs", () => {
      const packed = data.pairs[layerOf()];
      el("pairs").hidden = !packed;
      if (!packed) return;
      const E = data.layers[layerOf()].experts, lift = bytes(packed);
      const cells = Array.from(lift, (value, i) => ({a: Math.floor(i / E), b: i % E, times: value / 40})).filter((cell) => cell.a !== cell.b);
      put("pairs-chart", (width) => ({
        ariaLabel: `Pairs of experts of layer ${layerOf()}: how many times as often as by chance they have the same token`, width: Math.min(width, 620), height: Math.min(width, 560), padding: 0,
        x: {label: "expert", tickFormat: (e) => e % Math.ceil(E / 16) ? "" : e, tickSize: 0}, y: {label: "expert", tickFormat: (e) => e % Math.ceil(E / 16) ? "" : e, tickSize: 0},
        color: {type: "linear", domain: [0, 1, 4], range: heat(), clamp: true, legend: true, label: "times chance"},
        marks: [Plot.cell(cells, {x: "a", y: "b", fill: "times", tip: true})],
      }), () => ({head: ["expert", "expert", "times chance"], body: cells.filter((cell) => cell.a < cell.b).sort((p, q) => q.times - p.times).slice(0, 100).map((cell) => [cell.a, cell.b, cell.times])}));
    });
  if (names.some((name) => parts.some((part) => data.layers[name][part]?.bias)))
    chart("bias", () => {
      const found = log();
      el("bias").hidden = !found?.bias;
      if (!found?.bias) return;
      const E = data.layers[layerOf()].experts, bias = floats(found.bias);
      const points = found.frames.flatMap((step, i) => Array.from(bias.subarray(i * E, i * E + E), (y, expert) => ({step, y, expert})));
      put("bias-chart", () => ({
        ariaLabel: `Selection bias of the ${E} experts of layer ${layerOf()} over steps`, height: 280, x: {label: "step"}, y: {label: "selection bias", grid: true},
        marks: [Plot.lineY(points, {x: "step", y: "y", z: "expert", stroke: "currentColor", strokeOpacity: 0.45}), Plot.tip(points, Plot.pointer({x: "step", y: "y", channels: {expert: "expert"}}))],
      }), () => ({head: ["expert", "step", "bias"], body: points.filter((point) => point.step === found.frames.at(-1)).map((point) => [point.expert, point.step, point.y])}));
    });

  let waiting = 0;
  function redraw() {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => charts.filter((each) => each.drawn).forEach((each) => each.draw()));
  }
  for (const id of ["layer", "part", "over", "statistic"]) el(id).addEventListener("change", redraw);
  dark.addEventListener("change", redraw);
  let width = document.body.clientWidth;
  new ResizeObserver(() => {
    if (document.body.clientWidth !== width) { width = document.body.clientWidth; redraw(); }
  }).observe(document.body);
  addEventListener("beforeprint", () => charts.forEach(start));
  charts.forEach((each) => near.observe(each.section));
  document.body.dataset.ready = "yes";
})();
