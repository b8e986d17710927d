"use strict";
// The page's own script: draws the charts with Plotly, enlarges pictures, filters slides. It needs no network.

const specs = JSON.parse(document.getElementById("chart-data").textContent);
const tilesPerStep = JSON.parse(document.getElementById("tiles-per-step").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const SLOTS = ["--violet", "--pink", "--teal", "--amber", "--blue", "--green"];
const DASHES = ["solid", "dash", "dot", "dashdot"]; // a seventh run has the first colour again, dashed
const NARROW_PX = 620;
const shown = { hidden: new Set(), smoothing: 0, log: false, over: "step", range: null };
let isPrinting = false;
let isZooming = false;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function ofSlot(number) {
  return { color: colour(SLOTS[number % SLOTS.length]), dash: DASHES[Math.floor(number / SLOTS.length) % DASHES.length] };
}

// Plotly reads a little markup in its texts: names from files are to be read as they are.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function faded(hex, share) {
  const number = parseInt(hex.slice(1), 16);
  return `rgba(${number >> 16}, ${(number >> 8) & 255}, ${number & 255}, ${share})`;
}

function baseLayout(height) {
  const axis = {
    gridcolor: colour("--grid"), linecolor: colour("--line"), zeroline: false, color: colour("--soft"), automargin: true,
    tickfont: { size: 11.5 }, exponentformat: "e", minexponent: 3,
  };
  return {
    height, margin: { l: 44, r: 14, t: 8, b: 32 }, showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: colour("--soft"), size: 12 },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink"), size: 12.5 }, namelength: -1 },
    xaxis: { ...axis, exponentformat: "SI" }, yaxis: { ...axis },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--violet") },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // there a finger scrolls the page
    shapes: [], annotations: [],
  };
}

// Exponential moving average whose start is not drawn towards zero.
function smoothed(values, share) {
  let sum = 0, weight = 0;
  return values.map((value) => {
    sum = share * sum + (1 - share) * value;
    weight = share * weight + (1 - share);
    return sum / weight;
  });
}

function lineFigure(spec, isCurve) {
  const layout = baseLayout(isCurve ? 190 : 170);
  const isLog = isCurve && shown.log && spec.lines.every((line) => line.y.every((value) => value > 0));
  const traces = [];
  spec.lines.forEach((line, number) => {
    if (!line.x.length || (isCurve && shown.hidden.has(number))) return;
    const { color, dash } = ofSlot(number);
    const perStep = isCurve && shown.over === "tiles" ? tilesPerStep[number] || 1 : 1;
    const x = line.x.map((step) => step * perStep);
    const quiet = { x, mode: "lines", hoverinfo: "skip", type: "scatter" };
    if (line.low) {
      traces.push({ ...quiet, y: line.low, line: { width: 0 } });
      traces.push({ ...quiet, y: line.high, line: { width: 0 }, fill: "tonexty", fillcolor: faded(color, 0.16) });
    }
    if (isCurve && shown.smoothing > 0) traces.push({ ...quiet, y: line.y, line: { color: faded(color, 0.28), width: 1 } });
    traces.push({
      x, y: isCurve && shown.smoothing > 0 ? smoothed(line.y, shown.smoothing) : line.y, type: "scatter",
      mode: line.x.length > 1 ? "lines" : "markers", name: plain(line.label),
      line: { color, dash, width: 1.8 }, marker: { color, size: 6 }, hovertemplate: "%{y:.5~g}",
    });
  });
  layout.hovermode = "x unified";
  layout.xaxis.hoverformat = ",.0f";
  layout.xaxis.nticks = 6;
  layout.yaxis.nticks = 6;
  if (isCurve) layout.yaxis.fixedrange = true;
  layout.yaxis.type = isLog ? "log" : "linear";
  if (isLog) layout.yaxis.dtick = undefined;
  if (isCurve && shown.range) layout.xaxis.range = shown.range.map((step) => step * (shown.over === "tiles" ? tilesPerStep[0] || 1 : 1));
  const seen = spec.lines.filter((line, number) => !(isCurve && shown.hidden.has(number)));
  const [first, last] = (isCurve && shown.range) || [-Infinity, Infinity]; // the height is that of what one sees
  const isSeen = (line) => (_, place) => line.x[place] >= first && line.x[place] <= last;
  const values = seen.flatMap((line) => [...(line.low || line.y).filter(isSeen(line)), ...(line.high || line.y).filter(isSeen(line))]);
  if (spec.reference && !(isLog && spec.reference.value <= 0)) {
    const { label, value } = spec.reference;
    if (!(isCurve && shown.range)) values.push(value);
    layout.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: { color: colour("--soft"), width: 1, dash: "dash" } });
    layout.annotations.push({ xref: "paper", x: 1, y: isLog ? Math.log10(value) : value, text: plain(label), showarrow: false, xanchor: "right", yanchor: "top", font: { size: 11 } });
  }
  if (!isLog && values.length) { // a shape does not widen an axis by itself, and a constant would be drawn from -1 to 1
    const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
    const air = 0.07 * (high - low) || 0.1 * Math.abs(low) || 0.5;
    layout.yaxis.range = [low - air, high + air];
  }
  return { traces, layout };
}

function withInterval(value, low, high) {
  return value.toFixed(3) + (low === null || high === null ? "" : ` (${low.toFixed(3)} to ${high.toFixed(3)})`);
}

function wrapped(text, most) {
  const lines = [""];
  for (const word of String(text).split(/(?<=[\s\-_/,(])/)) {
    if ((lines.at(-1) + word).length > most && lines.at(-1)) lines.push("");
    lines[lines.length - 1] += word;
  }
  return lines.map(plain).join("<br>");
}

function intervalFigure(spec, widthPx) {
  const isNarrow = widthPx < NARROW_PX;
  const layout = baseLayout(spec.rows.length * (isNarrow ? 50 : 34) + 52);
  const kinds = { own: colour("--violet"), baseline: colour("--pink"), other: colour("--soft") };
  const traces = spec.rows.map((row, number) => ({
    x: [row.value], y: [-number], type: "scatter", mode: "markers+text", name: plain(row.label),
    marker: { color: kinds[row.kind], size: 10 },
    error_x: row.low === null || row.high === null ? undefined : {
      type: "data", symmetric: false, array: [row.high - row.value], arrayminus: [row.value - row.low],
      color: kinds[row.kind], thickness: 2, width: 4,
    },
    text: isNarrow ? undefined : [`<b>${row.value.toFixed(3)}</b>`], textposition: "top center", textfont: { color: kinds[row.kind], size: 12 },
    hovertemplate: `${plain(row.label)}<br>${withInterval(row.value, row.low, row.high)}<extra></extra>`,
  }));
  for (const row of spec.rows.filter((one) => one.kind === "baseline" && one.low !== null)) {
    layout.shapes.push({ type: "rect", yref: "paper", y0: 0, y1: 1, x0: row.low, x1: row.high, fillcolor: kinds.baseline, opacity: 0.09, line: { width: 0 }, layer: "below" });
  }
  if (spec.chance !== null) {
    layout.shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: spec.chance, x1: spec.chance, line: { color: colour("--soft"), width: 1, dash: "dash" }, layer: "below" });
    layout.annotations.push({ yref: "paper", y: 0, x: spec.chance, text: "chance", showarrow: false, xanchor: "left", yanchor: "bottom", font: { size: 11 } });
  }
  spec.rows.forEach((row, number) => {
    const text = row.kind === "other" ? wrapped(row.label, 29) : `<b>${wrapped(row.label, 29)}</b>`;
    layout.annotations.push(isNarrow
      ? { xref: "paper", x: 0, y: -number + 0.34, text: `${text.replaceAll("<br>", "")}  <b>${row.value.toFixed(3)}</b>`, showarrow: false, xanchor: "left", font: { size: 12.5, color: colour("--ink") } }
      : { xref: "paper", x: 0, xshift: -12, y: -number, text, showarrow: false, xanchor: "right", align: "right", font: { size: 12.5, color: colour("--ink") } });
  });
  layout.margin = { l: isNarrow ? 10 : 250, r: 18, t: isNarrow ? 18 : 10, b: 34 };
  layout.xaxis.range = spec.axis;
  layout.xaxis.nticks = isNarrow ? 5 : 8;
  Object.assign(layout.yaxis, { visible: false, range: [-spec.rows.length + 0.4, isNarrow ? 0.75 : 0.65], fixedrange: true });
  layout.hovermode = "closest";
  return { traces, layout };
}

function fractionFigure(spec) {
  const layout = baseLayout(270);
  const traces = spec.series.map((one, number) => {
    const shift = 0.5 * ((number + 0.5) / spec.series.length - 0.5);
    const places = one.points.map((point, place) => (point === null ? -1 : place)).filter((place) => place >= 0);
    const points = places.map((place) => one.points[place]);
    const { color, dash } = ofSlot(number);
    return {
      x: places.map((place) => place + shift), y: points.map((point) => point[0]), type: "scatter", mode: "lines+markers",
      name: plain(one.label), line: { color: faded(color, 0.5), width: 1.2, dash }, marker: { color, size: 8 },
      error_y: {
        type: "data", symmetric: false, color, thickness: 1.8, width: 3,
        array: points.map((point) => (point[2] === null ? 0 : point[2] - point[0])),
        arrayminus: points.map((point) => (point[1] === null ? 0 : point[0] - point[1])),
      },
      text: points.map((point, index) => `${plain(one.label)}, ${spec.categories[places[index]]}: ${withInterval(...point)}`),
      hovertemplate: "%{text}<extra></extra>",
    };
  });
  if (spec.chance !== null) layout.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: spec.chance, y1: spec.chance, line: { color: colour("--soft"), width: 1, dash: "dash" }, layer: "below" });
  Object.assign(layout.xaxis, { tickvals: spec.categories.map((_, place) => place), ticktext: spec.categories, range: [-0.5, spec.categories.length - 0.5] });
  layout.showlegend = spec.series.length > 1;
  layout.legend = { orientation: "h", y: -0.16, font: { color: colour("--ink") } };
  layout.hovermode = "closest";
  return { traces, layout };
}

function isCurve(place) {
  return place.closest(".curves") !== null;
}

function figureOf(place) {
  const spec = specs[Number(place.id.slice(6))];
  if (spec.kind === "lines") return lineFigure(spec, isCurve(place));
  return spec.kind === "intervals" ? intervalFigure(spec, place.clientWidth) : fractionFigure(spec);
}

function draw(place) {
  const { traces, layout } = figureOf(place);
  layout.width = place.clientWidth;
  const settings = {
    displaylogo: false, displayModeBar: !isPrinting, doubleClick: "reset",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: "dino_path_chart" },
  };
  Plotly.react(place, traces, layout, settings);
  // The place says it in words, and Plotly measures texts in a drawing of its own.
  [...place.querySelectorAll("svg"), document.getElementById("js-plotly-tester")].forEach((svg) => svg?.setAttribute("aria-hidden", "true"));
  if (place.dataset.ready) return;
  place.dataset.ready = "yes";
  place.addEventListener("keydown", readByKeys);
  if (isCurve(place)) place.on("plotly_relayout", zoomTogether);
}

function drawCurves() {
  document.querySelectorAll(".curves .plot").forEach(draw);
}

// The steps that one chart of a run is zoomed to are those of all its charts.
function zoomTogether(change) {
  if (isZooming) return;
  const isReset = change["xaxis.autorange"] === true;
  const ends = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
  if (!isReset && ends.includes(undefined)) return;
  const perStep = shown.over === "tiles" ? tilesPerStep[0] || 1 : 1;
  shown.range = isReset ? null : ends.map((end) => end / perStep);
  isZooming = true;
  drawCurves();
  isZooming = false;
}

// Left and right go from point to point, up and down from curve to curve; 0 shows all again.
function readByKeys(event) {
  const place = event.currentTarget;
  const readable = place.data.map((trace, number) => number).filter((number) => place.data[number].hoverinfo !== "skip");
  const at = (place.reading ||= { curve: 0, point: -1 });
  if (event.key === "0" && isCurve(place)) {
    shown.range = null;
    drawCurves();
    return;
  }
  const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  if (!(event.key in moves) || !readable.length) return;
  event.preventDefault();
  const [curveBy, pointBy] = moves[event.key];
  const isList = readable.every((number) => place.data[number].x.length === 1); // one point each: all keys go through them
  at.curve = Math.min(readable.length - 1, Math.max(0, at.curve + (isList ? curveBy + pointBy : curveBy)));
  const trace = place.data[readable[at.curve]];
  at.point = Math.min(trace.x.length - 1, Math.max(0, at.point + pointBy));
  Plotly.Fx.hover(place, [{ curveNumber: readable[at.curve], pointNumber: at.point }]);
  const said = trace.text && !isList ? trace.text[at.point] : `${trace.name}: ${Number(trace.y[at.point]).toPrecision(4)} at ${trace.x[at.point]}`;
  document.getElementById("live").textContent = isList ? `${trace.name}: ${trace.x[0].toFixed(3)}` : said;
}

function startControls() {
  const controls = document.getElementById("controls");
  if (!controls) return;
  controls.hidden = false;
  controls.querySelectorAll(".run").forEach((box) => box.addEventListener("change", () => {
    shown.hidden[box.checked ? "delete" : "add"](Number(box.value));
    drawCurves();
  }));
  const smoothing = document.getElementById("smoothing");
  smoothing.addEventListener("input", () => {
    shown.smoothing = Number(smoothing.value);
    document.getElementById("smoothing-value").textContent = smoothing.value;
    drawCurves();
  });
  document.getElementById("log-scale").addEventListener("change", (event) => { shown.log = event.target.checked; drawCurves(); });
  document.getElementById("over").addEventListener("change", (event) => { shown.over = event.target.value; drawCurves(); });
  document.getElementById("reset").addEventListener("click", () => { shown.range = null; drawCurves(); });
}

function startPictures() {
  const viewer = document.getElementById("viewer");
  const [image, caption] = [viewer.querySelector("img"), viewer.querySelector("p")];
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".enlarge");
    if (button) {
      const small = button.querySelector("img");
      [image.src, image.alt] = [small.src, small.alt];
      caption.textContent = button.dataset.caption;
      viewer.showModal();
    } else if (event.target === viewer) viewer.close(); // beside the picture
  });
}

function startSlides() {
  const search = document.getElementById("find-slide");
  if (!search) return;
  search.closest(".find").hidden = false;
  const rows = [...document.getElementById("slide-rows").rows].map((row) => [row, row.textContent.toLowerCase()]);
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    let number = 0;
    for (const [row, text] of rows) number += !(row.hidden = !text.includes(wanted));
    document.getElementById("found-slides").textContent = wanted ? `${number} of ${rows.length}` : "";
  });
}

// A table that is wider than the page says so, and can be scrolled by keys.
function markWide() {
  for (const box of document.querySelectorAll(".scroll")) {
    const isWide = box.scrollWidth > box.clientWidth + 1;
    const isTall = box.scrollHeight > box.clientHeight + 1;
    box.classList.toggle("wide", isWide);
    if (!isWide && !isTall) { box.removeAttribute("tabindex"); continue; }
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", isWide ? "Table, scrolls sideways" : "Table, scrolls");
  }
}

async function unpackPlotly() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly-packed").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script); // the page's policy knows its hash
}

function printing(is) {
  isPrinting = is;
  document.documentElement.classList.toggle("printing", is);
  document.querySelectorAll("details").forEach((one) => {
    if (is) { one.dataset.was = one.open ? "open" : ""; one.open = true; } else one.open = one.dataset.was === "open";
  });
  document.querySelectorAll(".plot").forEach(draw);
}

async function start() {
  startControls();
  startPictures();
  startSlides();
  markWide();
  await unpackPlotly();
  document.documentElement.classList.add("drawn");
  for (const place of document.querySelectorAll(".plot")) {
    draw(place);
    await new Promise((resolve) => setTimeout(resolve)); // the page stays alive meanwhile
  }
  document.documentElement.classList.add("ready");
  const redraw = () => document.querySelectorAll(".plot").forEach(draw);
  dark.addEventListener("change", redraw);
  let waiting;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => { markWide(); redraw(); }, 120); });
  addEventListener("beforeprint", () => printing(true));
  addEventListener("afterprint", () => printing(false));
}

start();
