"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const box = document.getElementById("curves-chart"), over = document.getElementById("over");
  const HUES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999"]; // Okabe and Ito 2008
  const xs = ["step", "seconds", "tokens"].filter((x) => data.curves.length && data.curves.every((curve) => curve[x]));
  for (const x of xs) over.append(new Option({step: "steps", seconds: "seconds of training", tokens: "tokens"}[x], x));
  const words = () => `${data.metric} of validation over ${over.value}, a line for each run, runs of one recipe in one colour`;
  function draw() {
    if (!data.curves.length) return;
    document.getElementById("curves").hidden = false;
    const points = data.curves.flatMap((curve, run) => curve.y.map((y, i) => ({x: curve[over.value][i], y, run, label: curve.label})));
    const figure = Plot.plot({
      width: Math.max(280, Math.min(980, box.clientWidth || 640)), height: 320, marginLeft: 52, ariaLabel: words(),
      style: {background: "transparent", color: "inherit", fontSize: "12px"}, x: {label: over.value}, y: {label: data.metric, grid: true},
      color: {domain: data.labels, range: data.labels.map((_, i) => HUES[i % HUES.length]), legend: true},
      marks: [
        Plot.lineY(points, {x: "x", y: "y", z: "run", stroke: "label", strokeWidth: 1.6}),
        Plot.dot(points, {x: "x", y: "y", stroke: "label", symbol: "label", r: 3}),
        Plot.tip(points, Plot.pointer({x: "x", y: "y", channels: {run: "label"}})),
      ],
    });
    const svg = [...figure.querySelectorAll("svg")].at(-1) ?? figure;
    for (const each of figure.querySelectorAll("svg")) each.setAttribute("role", "img"), each.setAttribute("aria-label", "Legend");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", words());
    for (const mark of figure.querySelectorAll("g[aria-label]")) mark.removeAttribute("aria-label");
    box.replaceChildren(figure);
  }
  over.addEventListener("change", draw);
  dark.addEventListener("change", draw);
  addEventListener("resize", draw);
  draw();
  document.body.dataset.ready = "yes";
})();
