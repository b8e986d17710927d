"use strict";
// Deep zoom of slides with layers of rectangles over them. Lengths: `level0` are px of the slide's finest level, `css`
// are px of the page. Everything that is shown comes from the server of this page; texts are set as text, never as HTML.

const at = (id) => document.getElementById(id);
const canvas = at("view"), stage = at("stage"), pen = canvas.getContext("2d");
const MOST_AT_ONCE = 6, MOST_KEPT = 300, MOST_TOKEN_TILES = 150, LARGEST_SCALE = 16;

let slides = [], slide = null, state = { version: 0, model: null, stage: "" };
let view = { x: 0, y: 0, scale: 1 };          // centre, level-0 px; css px per level-0 px
let chosen = null, attention = null, usesKeys = false, isDue = false, places = [];
const hidden = new Set(["clusters"]);         // names of layers, and "layer/group", that are not drawn

async function ask(path) {
  const answer = await fetch(path);
  const record = await answer.json();
  if (!answer.ok) throw new Error(record.error);
  return record;
}

function say(text) { if (at("status").textContent !== text) at("status").textContent = text; }

function fail(error) { if (error.name !== "AbortError") say(error.message); }

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// --- pictures from the server, those in view first -----------------------------------------------------------------

const pictures = {
  kept: new Map(), running: new Map(), wanted: new Map(),
  begin() { this.wanted.clear(); },
  get(address, distance) {
    const picture = this.kept.get(address);
    if (picture === undefined) { this.wanted.set(address, distance); return null; }
    this.kept.delete(address);                // last used goes last
    this.kept.set(address, picture);
    return picture;
  },
  pump() {
    for (const [address, control] of this.running) if (!this.wanted.has(address)) control.abort();
    const next = [...this.wanted].filter(([address]) => !this.running.has(address)).sort((a, b) => a[1] - b[1]);
    for (const [address] of next.slice(0, Math.max(0, MOST_AT_ONCE - this.running.size))) this.load(address);
    document.body.dataset.loading = this.wanted.size;
  },
  async load(address) {
    const control = new AbortController();
    this.running.set(address, control);
    try {
      const answer = await fetch(address, { signal: control.signal });
      if (!answer.ok) throw new Error((await answer.json()).error);
      this.kept.set(address, await createImageBitmap(await answer.blob()));
      for (const [oldest, picture] of this.kept) {
        if (this.kept.size <= MOST_KEPT) break;
        picture?.close();
        this.kept.delete(oldest);
      }
    } catch (error) {
      fail(error);
      if (error.name !== "AbortError") this.kept.set(address, null);   // asked for once
    } finally {
      this.running.delete(address);
      redraw();
    }
  },
};

// --- places --------------------------------------------------------------------------------------------------------

const toCss = (x, y) => [(x - view.x) * view.scale + stage.clientWidth / 2, (y - view.y) * view.scale + stage.clientHeight / 2];
const toLevel0 = (x, y) => [(x - stage.clientWidth / 2) / view.scale + view.x, (y - stage.clientHeight / 2) / view.scale + view.y];

function visible() {
  const [left, top] = toLevel0(0, 0), [right, bottom] = toLevel0(stage.clientWidth, stage.clientHeight);
  return { left, top, right, bottom };
}

function wholeScale() {
  const [, , width, height] = slide.about.part;
  return 0.95 * Math.min(stage.clientWidth / width, stage.clientHeight / height);
}

function showWhole() {
  const [left, top, width, height] = slide.about.part;
  view = { x: left + width / 2, y: top + height / 2, scale: wholeScale() };
  redraw();
}

function zoomBy(factor, cssX = stage.clientWidth / 2, cssY = stage.clientHeight / 2) {
  if (!slide) return;
  const [x, y] = toLevel0(cssX, cssY);
  view.scale = Math.min(LARGEST_SCALE, Math.max(wholeScale() / 4, view.scale * factor));
  const [nowX, nowY] = toLevel0(cssX, cssY);
  moveTo(view.x + x - nowX, view.y + y - nowY);
}

function moveTo(x, y) {
  view.x = Math.min(slide.about.width, Math.max(0, x));
  view.y = Math.min(slide.about.height, Math.max(0, y));
  redraw();
}

// --- drawing -------------------------------------------------------------------------------------------------------

function redraw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => { isDue = false; draw(); });
}

function draw() {
  const ratio = window.devicePixelRatio, width = stage.clientWidth, height = stage.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  if (!slide || !width) return;
  pictures.begin();
  drawSlide(ratio);
  if (at("show-tokens").checked) drawTokens();
  for (const layer of slide.layers) if (!hidden.has(layer.name)) drawLayer(layer);
  if (at("show-contour").checked) drawContours();
  drawAttention();
  if (chosen) outline(chosen.box, getComputedStyle(document.body).getPropertyValue("--accent"), 3);
  if (usesKeys) drawCross(width / 2, height / 2);
  pictures.pump();
  drawScale();
}

function drawPart(picture, left, top, width, height) {
  const [x0, y0] = toCss(left, top), [x1, y1] = toCss(left + width, top + height);
  pen.drawImage(picture, Math.round(x0), Math.round(y0), Math.round(x1) - Math.round(x0), Math.round(y1) - Math.round(y0));
}

function drawSlide(ratio) {
  const about = slide.about, seen = visible();
  pen.imageSmoothingEnabled = view.scale * ratio < 3;
  const thumbnail = pictures.get(`slide/${slide.number}/thumbnail.jpg`, -1);
  if (thumbnail) drawPart(thumbnail, ...about.part);
  if (about.coarsest < 0) return;
  const zoom = Math.max(0, Math.min(about.coarsest, Math.floor(Math.log2(1 / (view.scale * ratio)) + 0.3)));
  for (let coarse = about.coarsest; coarse >= zoom; coarse--) {
    const edge = about.square_px * 2 ** coarse, isWanted = coarse === zoom || coarse === about.coarsest;
    const last = [Math.min(seen.right, about.width - 1), Math.min(seen.bottom, about.height - 1)];
    for (let row = Math.max(0, Math.floor(seen.top / edge)); row <= Math.floor(last[1] / edge); row++) {
      for (let column = Math.max(0, Math.floor(seen.left / edge)); column <= Math.floor(last[0] / edge); column++) {
        const address = `slide/${slide.number}/square/${coarse}/${column}/${row}.jpg`;
        if (!isWanted && !pictures.kept.has(address)) continue;
        const distance = Math.hypot((column + 0.5) * edge - view.x, (row + 0.5) * edge - view.y) / edge;
        const picture = pictures.get(address, coarse === zoom ? distance : 1000 + distance);
        if (picture) drawPart(picture, column * edge, row * edge,
          Math.min(edge, about.width - column * edge), Math.min(edge, about.height - row * edge));
      }
    }
  }
}

function* boxesInView(group) {
  const { left, top, right, bottom } = visible(), boxes = group.boxes;
  for (let first = 0; first < boxes.length; first += 4) {
    if (boxes[first] < right && boxes[first + 1] < bottom
      && boxes[first] + boxes[first + 2] > left && boxes[first + 1] + boxes[first + 3] > top) yield first;
  }
}

function drawLayer(layer) {
  const isOutlined = layer.name === "tiles", opacity = at("opacity").value / 100;
  const isAlone = slide.layers.every(({ name }) => name === "tiles" || hidden.has(name)) && !at("show-tokens").checked;
  for (const group of layer.groups) {
    if (hidden.has(`${layer.name}/${group.label}`)) continue;
    const path = new Path2D();
    let edge = 0;
    for (const first of boxesInView(group)) {
      const [x, y] = toCss(group.boxes[first], group.boxes[first + 1]);
      edge = group.boxes[first + 2] * view.scale;
      path.rect(x, y, edge, group.boxes[first + 3] * view.scale);
    }
    pen.fillStyle = pen.strokeStyle = `rgb(${group.colour.join(" ")})`;
    pen.globalAlpha = isOutlined ? (group.label !== "kept" ? 0.35 : isAlone ? 0.1 : 0) : opacity;
    pen.fill(path);
    if (isOutlined && edge > 5) {
      pen.globalAlpha = 0.7;
      pen.lineWidth = 1;
      pen.stroke(path);
    }
    pen.globalAlpha = 1;
  }
}

function drawTokens() {
  const group = slide.layers.find((layer) => layer.name === "tiles")?.groups[0];
  if (!group) return;
  const seen = [...boxesInView(group)];
  const tooMany = seen.length > MOST_TOKEN_TILES;
  at("tokens-note").textContent = tooMany
    ? `Zoom in: ${seen.length.toLocaleString()} tiles in view, at most ${MOST_TOKEN_TILES} are coloured at a time.`
    : tokenNote();
  if (tooMany) return;
  pen.imageSmoothingEnabled = false;
  pen.globalAlpha = Math.max(0.2, at("opacity").value / 100 + 0.3);
  for (const first of seen) {
    const [x, y, width, height] = group.boxes.slice(first, first + 4);
    const distance = Math.hypot(x - view.x, y - view.y) / width;
    const picture = pictures.get(`slide/${slide.number}/tokens/${group.rows[first / 4]}.png`, 100 + distance);
    if (picture) drawPart(picture, x, y, width, height);
  }
  pen.globalAlpha = 1;
}

function tokenNote() {
  const shares = state.variance.map((share) => `${Math.round(100 * share)} %`);
  return `Red, green and blue are the first three principal components: ${shares.join(", ")} of the variance.`;
}

function drawContours() {
  pen.strokeStyle = "rgb(0 110 60)";
  pen.lineWidth = 2;
  pen.beginPath();
  for (const ring of slide.about.contours) {
    ring.forEach(([x, y], number) => pen[number ? "lineTo" : "moveTo"](...toCss(x, y)));
    pen.closePath();
  }
  pen.stroke();
}

function drawAttention() {
  if (!attention || attention.slide !== slide.number || !at("show-attention").checked) return;
  const { x, y, size, map, point } = attention;
  pen.imageSmoothingEnabled = false;
  if (map.image.complete) drawPart(map.image, x, y, size, size);
  outline([x, y, size, size], "rgb(20 20 20)", 2);
  if (at("attention-of").value === "point") drawCross(...toCss(...point));
}

function outline([x, y, width, height], colour, lineWidth) {
  pen.strokeStyle = colour;
  pen.lineWidth = lineWidth;
  pen.strokeRect(...toCss(x, y), width * view.scale, height * view.scale);
}

function drawCross(x, y) {
  for (const [colour, lineWidth] of [["white", 4], ["black", 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = lineWidth;
    pen.beginPath();
    pen.moveTo(x - 10, y); pen.lineTo(x + 10, y); pen.moveTo(x, y - 10); pen.lineTo(x, y + 10);
    pen.stroke();
  }
}

function drawScale() {
  const bar = at("scale");
  if (bar.hidden = !slide.about.mpp) return;
  const wanted = 120 / view.scale * slide.about.mpp, power = 10 ** Math.floor(Math.log10(wanted));
  const length = [5, 2, 1].map((step) => step * power).find((one) => one <= wanted);
  const css = length / slide.about.mpp * view.scale;
  const [label, line] = bar.children;
  line.style.width = `${css}px`;
  label.textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
}

// --- what lies where -----------------------------------------------------------------------------------------------

function hits(x, y) {
  const found = [];
  for (const layer of slide.layers) {
    for (const group of layer.groups) {
      const boxes = group.boxes;
      for (let first = 0; first < boxes.length; first += 4) {
        if (x >= boxes[first] && y >= boxes[first + 1]
          && x < boxes[first] + boxes[first + 2] && y < boxes[first + 1] + boxes[first + 3]) {
          found.push({ layer, group, number: first / 4 });
        }
      }
    }
  }
  return found;
}

function describe(x, y) {
  if (x < 0 || y < 0 || x >= slide.about.width || y >= slide.about.height) return "";
  const found = hits(x, y).filter(({ layer }) => layer.name === "tiles" || !hidden.has(layer.name));
  const lines = found.map(({ group, number }) => {
    if (!group.values) return group.label;
    const [what, limit] = group.what.split("; ");
    return `${group.label}: ${what} ${group.values[number]}${limit ? ` (${limit})` : ""}`;
  });
  if (!found.some(({ layer }) => layer.name === "tiles")) lines.unshift(slide.about.no_tile);
  return lines.join("\n");
}

async function choose(x, y) {
  if (at("show-attention").checked && state.fields?.length) await lookAt(x, y);
  const hit = hits(x, y).find(({ layer }) => layer.name === "tiles");
  if (!hit) {
    chosen = null;
    at("tile").replaceChildren(element("p", { className: "note", textContent: describe(x, y) || "Outside the slide." }));
    redraw();
    return;
  }
  const { group, number } = hit, mine = { box: group.boxes.slice(4 * number, 4 * number + 4), slide: slide.number };
  chosen = mine;
  redraw();
  const about = await ask(`slide/${slide.number}/tile/${group.rows[number]}.json`);
  if (chosen === mine) showTile(about);
}

function showTile(about) {
  const facts = [...about.facts];
  if (about.cluster) facts.push(["Cluster", `${about.cluster}`]);
  const parts = [facts_list(facts)];
  if (about.tile !== null) {
    parts.unshift(element("img", { src: `picture/${about.tile}.jpg`, alt: "The chosen tile" }));
    parts.push(neighbourList(about.neighbours));
  } else if (state.model) {
    parts.push(element("p", { className: "note", textContent: "A refused tile has no features, and so no neighbours." }));
  }
  at("tile").replaceChildren(...parts);
  say(facts.map((fact) => fact.join(" ")).slice(0, 2).join(", "));
}

function facts_list(facts) {
  return element("dl", {}, ...facts.flatMap(([name, value]) => [
    element("dt", { textContent: name }), element("dd", { textContent: value })]));
}

function neighbourList(neighbours) {
  const list = element("ul", { className: "neighbours" });
  const show = (name) => {
    const items = neighbours[name].map((one) => {
      const place = `${one.id}, x ${one.x.toLocaleString()}, y ${one.y.toLocaleString()}`;
      const button = element("button", { title: place, onclick: () => jump(one).catch(fail) },
        element("img", { src: `picture/${one.tile}.jpg`, alt: `Tile of ${place}, cosine`, loading: "lazy" }),
        `${one.similarity.toFixed(3)} ${one.id}`);
      return element("li", {}, button);
    });
    if (!items.length) items.push(element("li", { className: "note", textContent: "There are none in this store." }));
    list.replaceChildren(...items);
  };
  const choice = element("select", { ariaLabel: "Which neighbours", onchange: () => show(choice.value) },
    element("option", { value: "all", textContent: "of all slides" }),
    element("option", { value: "others", textContent: "of other patients" }));
  show("all");
  return element("div", {}, element("p", { className: "note" }, "Most alike by their features ", choice), list);
}

async function jump(place) {
  places.push({ slide: slide.number, view: { ...view } });
  at("back").disabled = false;
  await open(place.slide);
  view = { x: place.x + place.size / 2, y: place.y + place.size / 2, scale: Math.min(1, 160 / place.size) };
  await choose(view.x, view.y);
}

async function goBack() {
  const place = places.pop();
  at("back").disabled = !places.length;
  if (!place) return;
  await open(place.slide);
  view = place.view;
  redraw();
}

// --- attention -----------------------------------------------------------------------------------------------------

async function lookAt(x, y) {
  if (x < 0 || y < 0 || x >= slide.about.width || y >= slide.about.height) return;
  const number = slide.number;
  at("attention-note").textContent = "computing";
  try {
    const found = await ask(`slide/${number}/attention/${Math.floor(x)}/${Math.floor(y)}/${at("attention-field").value}.json`);
    attention = { ...found, slide: number, point: [x, y] };
    await showMap();
  } catch (error) {
    at("attention-note").textContent = error.message;
  }
}

async function showMap() {
  if (!attention) return;
  const of = at("attention-of").value, head = Number(at("attention-head").value), show = at("attention-show").value;
  const map = attention.maps.find((one) => one.of === of && one.head === head);
  const image = element("img", { src: map[show] });
  await image.decode();
  attention.map = { ...map, image };
  at("attention-note").textContent = show === "mass"
    ? `60 % of the attention lies on ${(100 * map.mass_share).toFixed(0)} % of the patches.`
    : `The largest weight is ${map.largest} times even attention${map.largest < 1.5 ? ": nothing stands out, nothing is drawn" : ""}.`;
  redraw();
}

// --- opening -------------------------------------------------------------------------------------------------------

async function open(number) {
  if (slide?.number === number) return;
  say("");
  const [about, layers] = await Promise.all([ask(`slide/${number}/about.json`), ask(`slide/${number}/layers.json`)]);
  slide = { number, about, layers };
  chosen = null;
  at("slides").value = number;
  canvas.ariaLabel = `Slide ${slides[number].id}`;
  document.title = `${slides[number].id} - dino-path view`;
  at("facts").replaceChildren(...facts_list(about.facts).childNodes);
  at("tile").replaceChildren(element("p", { className: "note", textContent: "Click a tile, or press Enter for the one in the middle." }));
  showLayers();
  if (about.width) showWhole();
  if (about.problem) say(`Only the thumbnail is shown: ${about.problem}`);
  if (!about.width) say(`This slide could not be read: ${slides[number].reason}`);
  document.body.dataset.slide = number;
}

function showLayers() {
  at("layers").replaceChildren(...slide.layers.map((layer) => {
    const legend = element("ul", { className: "legend", hidden: hidden.has(layer.name) },
      ...layer.groups.map((group) => legendEntry(layer, group)));
    const box = checkbox(layer.name, layer.title);
    box.firstElementChild.addEventListener("change", (event) => { legend.hidden = !event.target.checked; });
    return element("div", {}, box, legend);
  }));
}

function checkbox(name, ...content) {
  const input = element("input", { type: "checkbox", checked: !hidden.has(name) });
  input.onchange = () => { hidden[input.checked ? "delete" : "add"](name); redraw(); };
  return element("label", {}, input, " ", ...content);
}

function legendEntry(layer, group) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = `rgb(${group.colour.join(" ")})`;
  const parts = [swatch, group.label];
  const cluster = layer.name === "clusters" && state.clusters?.[Number(group.label.split(" ")[1]) - 1];
  if (cluster) parts.push(element("img", { src: `picture/${cluster.picture}.jpg`, alt: "Tile nearest to its centre" }));
  const count = (group.boxes.length / 4).toLocaleString();
  return element("li", {}, checkbox(`${layer.name}/${group.label}`, ...parts, element("span", { className: "count", textContent: count })));
}

async function follow() {
  const before = state.version;
  state = await ask("state.json");
  at("model").textContent = state.stage || (state.model ? `${state.model}: ${state.input}` : "");
  if (state.version !== before) {
    at("tokens").hidden = Boolean(state.no_tokens);
    at("attention").hidden = Boolean(state.no_attention);
    at("lacking").textContent = [state.no_tokens, state.no_attention].filter(Boolean).join(" ");
    if (!state.no_tokens) at("tokens-note").textContent = tokenNote();
    const heads = [["0", "mean"], ...Array.from({ length: state.num_heads }, (_, head) => [`${head + 1}`, `${head}`])];
    at("attention-head").replaceChildren(...heads.map(([value, textContent]) => element("option", { value, textContent })));
    at("attention-field").replaceChildren(...state.fields.map((field) =>
      element("option", { value: field, textContent: field === 1 ? "1 tile" : `${field} x ${field} tiles` })));
    slide.layers = await ask(`slide/${slide.number}/layers.json`);
    showLayers();
    redraw();
  }
  document.body.dataset.version = state.version;
  if (state.stage) setTimeout(() => follow().catch(fail), 1000);
}

// --- hands ---------------------------------------------------------------------------------------------------------

const held = new Map();                       // pointers that are down: where they are, and how far they have moved
let spread = 0;

canvas.onpointerdown = (event) => {
  canvas.setPointerCapture(event.pointerId);
  held.set(event.pointerId, { x: event.offsetX, y: event.offsetY, moved: 0 });
  at("tooltip").hidden = true;
  usesKeys = false;
  spread = 0;
};

canvas.onpointermove = (event) => {
  if (!slide) return;
  const pointer = held.get(event.pointerId);
  if (!pointer) { hover(event.offsetX, event.offsetY); return; }
  const dx = event.offsetX - pointer.x, dy = event.offsetY - pointer.y;
  held.set(event.pointerId, { x: event.offsetX, y: event.offsetY, moved: pointer.moved + Math.hypot(dx, dy) });
  moveTo(view.x - dx / view.scale / held.size, view.y - dy / view.scale / held.size);
  if (held.size === 2) {
    const [one, other] = held.values(), now = Math.hypot(one.x - other.x, one.y - other.y);
    if (spread) zoomBy(now / spread, (one.x + other.x) / 2, (one.y + other.y) / 2);
    spread = now;
  }
};

canvas.onpointerup = (event) => {
  const pointer = held.get(event.pointerId);
  held.delete(event.pointerId);
  if (slide && pointer && pointer.moved < 4 && !held.size) choose(...toLevel0(event.offsetX, event.offsetY)).catch(fail);
};

canvas.onpointercancel = (event) => held.delete(event.pointerId);
canvas.onpointerleave = () => { at("tooltip").hidden = true; };

function hover(cssX, cssY) {
  const tooltip = at("tooltip"), text = describe(...toLevel0(cssX, cssY));
  tooltip.hidden = !text;
  if (!text) return;
  tooltip.textContent = text;
  tooltip.style.left = `${Math.max(0, Math.min(cssX + 14, stage.clientWidth - tooltip.offsetWidth - 4))}px`;
  tooltip.style.top = `${Math.max(0, Math.min(cssY + 14, stage.clientHeight - tooltip.offsetHeight - 4))}px`;
}

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  at("tooltip").hidden = true;
  zoomBy(2 ** (-event.deltaY / (event.deltaMode ? 10 : 300)), event.offsetX, event.offsetY);
}, { passive: false });

canvas.onkeydown = (event) => {
  if (!slide || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = 0.125 / view.scale, width = stage.clientWidth * step, height = stage.clientHeight * step;
  const moves = { ArrowLeft: [-width, 0], ArrowRight: [width, 0], ArrowUp: [0, -height], ArrowDown: [0, height] };
  if (moves[event.key]) moveTo(view.x + moves[event.key][0], view.y + moves[event.key][1]);
  else if (event.key === "+" || event.key === "=") zoomBy(1.5);
  else if (event.key === "-") zoomBy(1 / 1.5);
  else if (event.key === "0" || event.key === "Home") showWhole();
  else if (event.key === "Enter") choose(view.x, view.y).catch(fail);
  else if (event.key === "Backspace") goBack().catch(fail);
  else return;
  event.preventDefault();
  usesKeys = true;
  if (event.key !== "Enter") say(describe(view.x, view.y).replaceAll("\n", "; "));
};

at("zoom-in").onclick = () => zoomBy(1.5);
at("zoom-out").onclick = () => zoomBy(1 / 1.5);
at("whole").onclick = () => slide && showWhole();
at("back").onclick = () => goBack().catch(fail);
at("slides").onchange = (event) => open(Number(event.target.value)).catch(fail);
for (const id of ["show-contour", "show-tokens", "opacity"]) at(id).oninput = redraw;
for (const id of ["attention-of", "attention-head", "attention-show"]) at(id).onchange = () => showMap().catch(fail);
at("show-attention").onchange = at("attention-field").onchange = () => {
  at("attention-choices").hidden = !at("show-attention").checked;
  if (at("show-attention").checked && attention?.slide === slide.number) lookAt(...attention.point);
  else if (at("show-attention").checked) at("attention-note").textContent = "Click the slide, or press Enter for its middle.";
  redraw();
};
new ResizeObserver(redraw).observe(stage);

async function start() {
  slides = await ask("slides.json");
  at("slides").replaceChildren(...slides.map((one, number) => element("option", {
    value: number, textContent: one.status === "failed" ? `${one.id} (failed)` : `${one.id} (${one.num_tiles.toLocaleString()} tiles)` })));
  await open(Math.max(0, slides.findIndex((one) => one.status === "done")));
  await follow();
}

start().catch(fail);
