"use strict";
// A map of features: draws the points of a section.feature-map, and answers mouse, touch and keyboard.
// Points are painted into the pixels of one canvas by hand: tens of thousands take a few milliseconds without WebGL, and
// look the same everywhere. What changes with the pointer (rings, lines) stands on a second canvas above.
for (const section of document.querySelectorAll("section.feature-map")) startFeatureMap(section);

function startFeatureMap(section) {
  const find = name => section.querySelector(".fm-" + name);
  const map = JSON.parse(section.querySelector("script.feature-map-data").textContent);
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer;
  const NONE = 65535, NUM_COLOURS = 8, RANGE = 65534, OTHERS = NUM_COLOURS, COSINE_STEPS = 30000;
  const n = map.num_tiles, k = map.num_neighbours;
  const xs = new Uint16Array(bytes(map.x)), ys = new Uint16Array(bytes(map.y));
  const neighbours = new Uint16Array(bytes(map.neighbours)), similarity = new Int16Array(bytes(map.similarity));
  const xLevel0 = map.x_level0 === null ? null : new Int32Array(bytes(map.x_level0));
  const yLevel0 = map.y_level0 === null ? null : new Int32Array(bytes(map.y_level0));
  const columns = map.columns.map(column => ({ ...column, codes: new Uint16Array(bytes(column.codes)) }));
  const unitColumn = columns.find(column => column.title === map.unit) ?? null;

  const stage = find("stage"), base = find("points"), over = find("over"), tip = find("tip"), live = find("live");
  const baseContext = base.getContext("2d", { alpha: false, willReadFrequently: true }), overContext = over.getContext("2d");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const state = {
    column: columns[0], chosen: new Set(), search: "", width: 0, height: 0, ratio: 1, scale: 1, left: 0, top: 0, fit: 1,
    hovered: -1, selected: -1, before: [], pictures: false, fresh: false,
  };
  const colourOf = new Uint8Array(n), isLit = new Uint8Array(n);

  // Drawn in an order that no class, slide or file name decides: else the last would hide the others.
  const order = new Uint32Array(n);
  for (let i = 0, random = 1; i < n; i++) {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
    const j = Math.floor(random / 2 ** 32 * (i + 1));
    order[i] = order[j];
    order[j] = i;
  }

  // --- which tile is where ------------------------------------------------------------------------------------------

  const CELLS = 128, cellOf = i => (ys[i] * CELLS >> 16) * CELLS + (xs[i] * CELLS >> 16);
  const cellStarts = new Uint32Array(CELLS * CELLS + 1), inCells = new Uint32Array(n);
  for (let i = 0; i < n; i++) cellStarts[cellOf(i) + 1]++;
  for (let cell = 0; cell < CELLS * CELLS; cell++) cellStarts[cell + 1] += cellStarts[cell];
  const filled = cellStarts.slice();
  for (let i = 0; i < n; i++) inCells[filled[cellOf(i)]++] = i;

  const screenX = i => xs[i] * state.scale + state.left, screenY = i => ys[i] * state.scale + state.top;

  function tileAt(x, y, most) {
    const reach = most / state.scale, mapX = (x - state.left) / state.scale, mapY = (y - state.top) / state.scale;
    const clamp = value => Math.max(0, Math.min(CELLS - 1, Math.floor(value * CELLS / 65536)));
    let best = -1, least = reach * reach;
    for (let row = clamp(mapY - reach); row <= clamp(mapY + reach); row++) {
      const from = cellStarts[row * CELLS + clamp(mapX - reach)], to = cellStarts[row * CELLS + clamp(mapX + reach) + 1];
      for (let place = from; place < to; place++) {
        const i = inCells[place], distance = (xs[i] - mapX) ** 2 + (ys[i] - mapY) ** 2;
        if (isLit[i] && distance < least) { least = distance; best = i; }
      }
    }
    return best;
  }

  // --- colours and shapes -------------------------------------------------------------------------------------------

  const corners = (count, turn, inner) => Array.from({ length: count * (inner ? 2 : 1) }, (_, i) => {
    const angle = (turn + i * (inner ? 180 : 360) / count) * Math.PI / 180, radius = inner && i % 2 ? inner : 1;
    return [Math.cos(angle) * radius, Math.sin(angle) * radius];
  });
  const SHAPES = [
    corners(24, 0).map(([x, y]) => [x * 0.95, y * 0.95]), corners(4, 45).map(([x, y]) => [x * 1.15, y * 1.15]),
    corners(3, -90).map(([x, y]) => [x * 1.25, y * 1.25 + 0.2]), corners(4, 0).map(([x, y]) => [x * 1.2, y * 1.2]),
    corners(3, 90).map(([x, y]) => [x * 1.25, y * 1.25 - 0.2]), corners(4, 0, 0.4).map(([x, y]) => [x * 1.35, y * 1.35]),
    corners(4, 45, 0.4).map(([x, y]) => [x * 1.35, y * 1.35]), corners(5, -90, 0.5).map(([x, y]) => [x * 1.3, y * 1.3]),
    corners(24, 0).map(([x, y]) => [x * 0.75, y * 0.75]),
  ];
  function holds(shape, x, y) {
    let inside = false;
    for (let i = 0, j = shape.length - 1; i < shape.length; j = i++) {
      const [ax, ay] = shape[i], [bx, by] = shape[j];
      if (ay > y !== by > y && x < (bx - ax) * (y - ay) / (by - ay) + ax) inside = !inside;
    }
    return inside;
  }
  function stampOf(shape, radius) {  // pixels around a point, and how much of each the shape covers
    const reach = Math.ceil(radius * 1.4), dx = [], dy = [], cover = [];
    for (let y = -reach; y <= reach; y++) for (let x = -reach; x <= reach; x++) {
      let hits = 0;
      for (let a = 0; a < 4; a++) for (let b = 0; b < 4; b++)
        hits += holds(shape, (x + (a - 1.5) / 4) / radius, (y + (b - 1.5) / 4) / radius);
      if (hits) { dx.push(x); dy.push(y); cover.push(hits / 16); }
    }
    return { reach, dx: Int32Array.from(dx), dy: Int32Array.from(dy), cover };
  }
  const colourName = number => number === OTHERS ? "--fm-others" : "--fm-" + number;
  let theme = null;  // the colours as the style has them now; null: the scheme has changed
  function css(name) {
    if (theme === null) {
      const style = getComputedStyle(section), names = ["--fm-card", "--fm-ink", "--fm-dim"];
      for (let number = 0; number <= OTHERS; number++) names.push(colourName(number));
      theme = Object.fromEntries(names.map(each => [each, style.getPropertyValue(each).trim()]));
    }
    return theme[name];
  }
  function rgb(name) { return [1, 3, 5].map(at => parseInt(css(name).slice(at, at + 2), 16)); }

  function classify() {
    const { column, chosen, search } = state, slides = unitColumn;
    const found = search === "" || slides === null ? null
      : Uint8Array.from(slides.names, name => name.toLowerCase().includes(search));
    for (let i = 0; i < n; i++) {
      const colour = Math.min(column.codes[i], OTHERS);
      colourOf[i] = colour;
      isLit[i] = (chosen.size === 0 || chosen.has(colour)) && (found === null || found[slides.codes[i]]) ? 1 : 0;
    }
    if (found !== null) {
      const count = isLit.reduce((sum, one) => sum + one, 0), hits = found.reduce((sum, one) => sum + one, 0);
      find("found").textContent = `${count.toLocaleString("en")} tiles of ${hits.toLocaleString("en")} ${map.unit}s`;
    } else if (slides !== null) find("found").textContent = "";
    draw();
  }

  // --- drawing ------------------------------------------------------------------------------------------------------

  let pixels = null, stamps = null, stampsFor = "";
  const radius = () => Math.max(1.6, Math.min(3.6, 260 / Math.sqrt(n))) * Math.min(2.6, (state.scale / state.fit) ** 0.35);

  function paint() {
    const { ratio } = state, width = base.width, height = base.height;
    if (pixels === null || pixels.width !== width || pixels.height !== height) pixels = baseContext.createImageData(width, height);
    const [red, green, blue] = rgb("--fm-card"), out = new Uint8Array(pixels.data.buffer);
    new Uint32Array(pixels.data.buffer).fill((255 << 24 | blue << 16 | green << 8 | red) >>> 0);
    const size = Math.round(radius() * ratio * 8) / 8;
    if (stampsFor !== String(size)) { stamps = SHAPES.map(shape => stampOf(shape, size)); stampsFor = String(size); }
    const colours = Array.from({ length: OTHERS + 1 }, (_, number) => rgb(colourName(number)));
    const dimmed = rgb("--fm-dim");
    for (const lit of [0, 1]) {
      const prepared = stamps.map((stamp, number) => ({
        ...stamp, offset: stamp.dx.map((x, i) => (stamp.dy[i] * width + x) * 4), colour: lit ? colours[number] : dimmed,
        weight: Int32Array.from(stamp.cover, cover => Math.round(cover * (lit ? 225 : 110))),
      }));
      for (let place = 0; place < n; place++) {
        const i = order[place];
        if (isLit[i] !== lit) continue;
        const { reach, offset, dx, dy, weight, colour } = prepared[colourOf[i]];
        const x = Math.round((xs[i] * state.scale + state.left) * ratio), y = Math.round((ys[i] * state.scale + state.top) * ratio);
        if (x < -reach || y < -reach || x >= width + reach || y >= height + reach) continue;
        const whole = x >= reach && y >= reach && x < width - reach && y < height - reach;
        const start = (y * width + x) * 4, red = colour[0], green = colour[1], blue = colour[2];
        for (let p = 0; p < offset.length; p++) {
          if (!whole && (x + dx[p] < 0 || x + dx[p] >= width || y + dy[p] < 0 || y + dy[p] >= height)) continue;
          const at = start + offset[p], share = weight[p];
          out[at] += (red - out[at]) * share >> 8;
          out[at + 1] += (green - out[at + 1]) * share >> 8;
          out[at + 2] += (blue - out[at + 2]) * share >> 8;
        }
      }
    }
    baseContext.putImageData(pixels, 0, 0);
  }

  function mark() {
    const { ratio, hovered, selected } = state, ink = css("--fm-ink");
    overContext.setTransform(ratio, 0, 0, ratio, 0, 0);
    overContext.clearRect(0, 0, state.width, state.height);
    if (state.pictures) drawMosaic();
    const ring = (i, size, width) => {
      overContext.beginPath();
      overContext.arc(screenX(i), screenY(i), size, 0, 2 * Math.PI);
      overContext.lineWidth = width + 2.5; overContext.strokeStyle = css("--fm-card"); overContext.stroke();
      overContext.lineWidth = width; overContext.strokeStyle = ink; overContext.stroke();
    };
    if (selected >= 0) {
      overContext.globalAlpha = 0.55; overContext.lineWidth = 1.2; overContext.strokeStyle = ink;
      for (const j of neighboursOf(selected)) {
        overContext.beginPath();
        overContext.moveTo(screenX(selected), screenY(selected));
        overContext.lineTo(screenX(j), screenY(j));
        overContext.stroke();
      }
      overContext.globalAlpha = 1;
      for (const j of neighboursOf(selected)) ring(j, 6, 1.4);
      ring(selected, 9, 2.6);
    }
    if (hovered >= 0 && hovered !== selected) ring(hovered, 7.5, 2);
  }

  let waiting = 0;
  function draw() {  // at most once a frame
    state.fresh = false;
    if (waiting === 0) waiting = requestAnimationFrame(drawNow);
  }
  function drawNow() {
    cancelAnimationFrame(waiting);
    waiting = 0;
    const begin = performance.now();
    if (!state.fresh) paint();
    state.fresh = true;
    mark();
    return performance.now() - begin;
  }
  function remark() { if (waiting === 0) waiting = requestAnimationFrame(drawNow); }

  // --- thumbnails ---------------------------------------------------------------------------------------------------

  const { edge_px: edge, per_row: perRow } = map.pictures, sheets = map.pictures.sheets.map(() => null);
  const pictureOf = new Int32Array(n).fill(-1);
  if (map.pictures.tiles === "") pictureOf.forEach((_, i) => { pictureOf[i] = i; });
  else new Uint16Array(bytes(map.pictures.tiles)).forEach((tile, picture) => { pictureOf[tile] = picture; });

  function sheetOf(i) {  // null until it is decoded; then what waits for it is drawn again
    const number = Math.floor(pictureOf[i] / perRow ** 2);
    if (sheets[number] === null) {
      const image = sheets[number] = new Image();
      image.src = "data:image/jpeg;base64," + map.pictures.sheets[number];
      image.decode().then(() => { image.isThere = true; section.dispatchEvent(new Event("fm-sheet")); });
    }
    return sheets[number].isThere ? sheets[number] : null;
  }
  function drawPicture(context, i, x, y, size) {
    if (pictureOf[i] < 0) return;
    const sheet = sheetOf(i), place = pictureOf[i] % perRow ** 2;
    if (sheet === null) return;
    context.drawImage(sheet, place % perRow * edge, Math.floor(place / perRow) * edge, edge, edge, x, y, size, size);
  }
  function picture(i, size) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = Math.round(size * Math.max(1, devicePixelRatio));
    canvas.style.width = canvas.style.height = size + "px";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", pictureOf[i] < 0 ? "no thumbnail: the page has no room for all" : `thumbnail of ${nameOf(i)}`);
    const paintIt = () => drawPicture(canvas.getContext("2d"), i, 0, 0, canvas.width);
    canvas.paintIt = paintIt;
    paintIt();
    return canvas;
  }
  section.addEventListener("fm-sheet", () => {
    for (const canvas of section.querySelectorAll("canvas[role=img]")) canvas.paintIt();
    if (state.pictures) remark();
  });

  const MOSAIC_PX = 44;
  function drawMosaic() {  // in each square of the screen one tile that lies in it
    const taken = new Map(), step = MOSAIC_PX / state.scale;
    for (let place = n - 1; place >= 0; place--) {
      const i = order[place], x = screenX(i), y = screenY(i);
      if (isLit[i] && pictureOf[i] >= 0 && x > -MOSAIC_PX && y > -MOSAIC_PX && x < state.width + MOSAIC_PX && y < state.height + MOSAIC_PX)
        taken.set(Math.floor(xs[i] / step) * 1e6 + Math.floor(ys[i] / step), i);
    }
    for (const [cell, i] of taken) {
      const x = Math.floor(cell / 1e6) * MOSAIC_PX + state.left, y = cell % 1e6 * MOSAIC_PX + state.top;
      overContext.fillStyle = css(colourName(colourOf[i]));
      overContext.fillRect(x, y, MOSAIC_PX - 2, MOSAIC_PX - 2);
      drawPicture(overContext, i, x + 3, y + 3, MOSAIC_PX - 8);
    }
  }

  // --- words --------------------------------------------------------------------------------------------------------

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  const valueOf = (column, i) => column.names[column.codes[i]];
  const placeOf = i => xLevel0 === null ? map.names[i] : `x ${xLevel0[i].toLocaleString("en")}, y ${yLevel0[i].toLocaleString("en")} px`;
  const nameOf = i => unitColumn === null ? placeOf(i) : `${map.unit} ${valueOf(unitColumn, i)}, ${placeOf(i)}`;
  const neighboursOf = i => Array.from(neighbours.subarray(i * k, i * k + k)).filter(j => j !== NONE);
  const factsOf = i => [
    ...columns.map(column => [column.title, valueOf(column, i)]), [xLevel0 === null ? "file" : "place", placeOf(i)],
  ];
  const factList = i => element("dl", {}, ...factsOf(i).flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, value)]));

  function swatch(number) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "-1.5 -1.5 3 3");
    svg.setAttribute("aria-hidden", "true");
    const shape = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
    shape.setAttribute("points", SHAPES[number].map(point => point.map(value => value.toFixed(2)).join()).join(" "));
    shape.style.fill = `var(${colourName(number)})`;
    svg.append(shape);
    return svg;
  }

  function showLegend() {
    const { column } = state, counts = new Array(OTHERS + 1).fill(0);
    for (const code of column.codes) counts[Math.min(code, OTHERS)]++;
    const rest = column.names.length - OTHERS;
    const entries = counts.slice(0, Math.min(column.names.length, OTHERS + 1)).map((count, number) => {
      const name = number === OTHERS ? `${rest.toLocaleString("en")} others` : column.names[number];
      const button = element("button", { type: "button", "aria-pressed": state.chosen.has(number) },
        swatch(number), element("span", {}, name), element("small", {}, count.toLocaleString("en")));
      button.addEventListener("click", () => {
        if (!state.chosen.delete(number)) state.chosen.add(number);
        button.setAttribute("aria-pressed", state.chosen.has(number));
        find("all").hidden = state.chosen.size === 0;
        classify();
      });
      return element("li", {}, button);
    });
    find("legend").replaceChildren(...entries);
    find("all").hidden = true;
    over.setAttribute("aria-label", `Map of ${n.toLocaleString("en")} tiles, coloured by ${column.title}`);
  }

  function showDetail() {
    const i = state.selected, panel = find("detail");
    find("hint").hidden = i >= 0;
    panel.hidden = i < 0;
    if (i < 0) { panel.replaceChildren(); return; }
    const found = neighboursOf(i), same = found.filter(j => state.column.codes[j] === state.column.codes[i]).length;
    const heading = element("h3", { tabindex: "-1" }, unitColumn === null ? nameOf(i) : "Tile of " + nameOf(i));
    const items = found.map((j, place) => {
      const cosine = (similarity[i * k + place] / COSINE_STEPS).toFixed(3);
      const text = element("span", {}, element("b", {}, unitColumn === null ? placeOf(j) : valueOf(unitColumn, j)),
        ...(unitColumn === null ? [] : [element("small", {}, placeOf(j))]),
        element("small", {}, ...(state.column === unitColumn ? [] : [swatch(Math.min(state.column.codes[j], OTHERS)), " ", valueOf(state.column, j), " · "]), `cosine ${cosine}`));
      const button = element("button", { type: "button", "data-tile": j }, picture(j, 56), text);
      button.addEventListener("click", () => { state.before.push(i); select(j, true); });
      return element("li", {}, button);
    });
    const others = map.unit === "image" ? "other tiles" : `tiles of other ${map.unit}s`;
    const title = found.length === 0 ? `There are no ${others}.`
      : `The ${found.length} nearest ${others}` + (state.column === unitColumn || state.column.title === "cluster" ? ""
        : `: ${same} of ${found.length} have its ${state.column.title}`);
    const buttons = element("p", { class: "fm-row" });
    const button = (text, act) => { const made = element("button", { type: "button" }, text); made.addEventListener("click", act); buttons.append(made); };
    if (state.before.length > 0) button("Back", () => select(state.before.pop(), true));
    button("Close", () => { state.before = []; select(-1); over.focus(); });
    panel.replaceChildren(heading, element("div", { class: "fm-tile" }, picture(i, 112), factList(i)),
      element("h4", {}, title), element("ol", {}, ...items), buttons);
  }

  function select(i, isMoved) {
    state.selected = i;
    state.hovered = -1;
    tip.hidden = true;
    showDetail();
    if (i >= 0) {
      live.textContent = `Selected: ${factsOf(i).map(fact => fact.join(" ")).join(", ")}. Its neighbours are listed after the map.`;
      const x = screenX(i), y = screenY(i);
      if (x < 0 || y < 0 || x > state.width || y > state.height) { state.left += state.width / 2 - x; state.top += state.height / 2 - y; draw(); }
      if (isMoved) find("detail").querySelector("h3").focus({ preventScroll: true });
    } else live.textContent = "";
    remark();
  }

  function hover(i, x, y) {
    if (i !== state.hovered) {
      state.hovered = i;
      tip.hidden = i < 0;
      if (i >= 0) tip.replaceChildren(picture(i, Math.max(96, edge)), factList(i));
      remark();
    }
    if (i < 0) return;
    const right = x + 16 + tip.offsetWidth > state.width;
    tip.style.left = Math.max(0, right ? x - 16 - tip.offsetWidth : x + 16) + "px";
    tip.style.top = Math.max(0, Math.min(y + 12, state.height - tip.offsetHeight)) + "px";
  }

  // --- where one looks ----------------------------------------------------------------------------------------------

  const RIM = 18;
  function home() {
    let right = 1, bottom = 1;
    for (let i = 0; i < n; i++) { right = Math.max(right, xs[i]); bottom = Math.max(bottom, ys[i]); }
    state.fit = state.scale = Math.min((state.width - 2 * RIM) / right, (state.height - 2 * RIM) / bottom);
    state.left = (state.width - right * state.scale) / 2;
    state.top = (state.height - bottom * state.scale) / 2;
    draw();
  }
  function zoom(factor, x = state.width / 2, y = state.height / 2) {
    const scale = Math.max(state.fit * 0.7, Math.min(state.fit * 60, state.scale * factor)), by = scale / state.scale;
    state.left = x - (x - state.left) * by;
    state.top = y - (y - state.top) * by;
    state.scale = scale;
    draw();
  }
  function resize() {
    const width = stage.clientWidth, height = stage.clientHeight, ratio = Math.min(2, Math.max(1, devicePixelRatio));
    if (width === 0 || (width === state.width && height === state.height && ratio === state.ratio)) return;
    const isFirst = state.width === 0 || state.scale === state.fit;
    state.left += (width - state.width) / 2;
    state.top += (height - state.height) / 2;
    Object.assign(state, { width, height, ratio });
    for (const canvas of [base, over]) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    if (isFirst) home(); else draw();
  }

  // --- mouse, touch, keyboard ---------------------------------------------------------------------------------------

  const pointers = new Map();
  let moved = 0;
  const at = event => { const box = over.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  over.addEventListener("pointerdown", event => {
    over.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    moved = 0;
  });
  over.addEventListener("pointermove", event => {
    const [x, y] = at(event), last = pointers.get(event.pointerId);
    if (last === undefined) { hover(tileAt(x, y, 12), x, y); return; }
    const others = [...pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    moved += Math.hypot(x - last[0], y - last[1]);
    if (others.length === 1) {
      const [[otherX, otherY]] = others;
      zoom(Math.hypot(x - otherX, y - otherY) / Math.max(1, Math.hypot(last[0] - otherX, last[1] - otherY)), otherX, otherY);
    } else if (moved > 4) {
      state.left += x - last[0];
      state.top += y - last[1];
      hover(-1);
      draw();
    }
    pointers.set(event.pointerId, [x, y]);
  });
  over.addEventListener("pointerup", event => {
    const [x, y] = at(event);
    if (pointers.delete(event.pointerId) && pointers.size === 0 && moved <= 4) {
      const i = tileAt(x, y, event.pointerType === "touch" ? 22 : 12);
      state.before = [];
      select(i);
    }
  });
  over.addEventListener("pointercancel", event => pointers.delete(event.pointerId));
  over.addEventListener("pointerleave", () => hover(-1));
  over.addEventListener("wheel", event => {
    // The wheel scrolls the page until the map has been clicked or tabbed to.
    if (document.activeElement !== over && !event.ctrlKey) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0018)), ...at(event));
  }, { passive: false });

  function step(dx, dy) {  // to the nearest tile in that direction, within 45 degrees
    const from = state.hovered >= 0 ? state.hovered : state.selected;
    const x = from >= 0 ? screenX(from) : state.width / 2, y = from >= 0 ? screenY(from) : state.height / 2;
    let best = -1, least = Infinity;
    for (let i = 0; i < n; i++) {
      if (!isLit[i] || i === from) continue;
      const ahead = (screenX(i) - x) * dx + (screenY(i) - y) * dy, aside = Math.abs((screenX(i) - x) * dy - (screenY(i) - y) * dx);
      const cost = ahead + 2 * aside;
      if (from < 0 ? Math.hypot(screenX(i) - x, screenY(i) - y) < least : ahead >= 5 && aside <= ahead && cost < least) {
        best = i;
        least = from < 0 ? Math.hypot(screenX(i) - x, screenY(i) - y) : cost;
      }
    }
    if (best < 0) return;
    const nextX = screenX(best), nextY = screenY(best);
    if (nextX < 0 || nextY < 0 || nextX > state.width || nextY > state.height) {
      state.left += state.width / 2 - nextX;
      state.top += state.height / 2 - nextY;
      draw();
    }
    hover(best, screenX(best), screenY(best));
    live.textContent = factsOf(best).map(fact => fact.join(" ")).join(", ");
  }
  const KEYS = {
    ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
    "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), "0": home, Home: home,
    Enter: () => { if (state.hovered >= 0) { state.before = []; select(state.hovered, true); } },
    Escape: () => { state.before = []; hover(-1); select(-1); },
  };
  KEYS[" "] = KEYS.Enter;
  over.addEventListener("keydown", event => {
    const act = KEYS[event.key];
    if (act === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
  over.addEventListener("blur", () => hover(-1));
  find("detail").addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    KEYS.Escape();
    over.focus();
  });

  find("in").addEventListener("click", () => zoom(1.5));
  find("out").addEventListener("click", () => zoom(1 / 1.5));
  find("home").addEventListener("click", home);
  find("mosaic").addEventListener("change", event => { state.pictures = event.target.checked; remark(); });
  find("all").addEventListener("click", () => { state.chosen.clear(); showLegend(); classify(); });
  for (const radio of section.querySelectorAll("input[type=radio]")) radio.addEventListener("change", () => {
    state.column = columns[Number(radio.value)];
    state.chosen.clear();
    showLegend();
    classify();
    showDetail();
  });
  const search = find("search");
  if (search !== null) search.addEventListener("input", () => { state.search = search.value.trim().toLowerCase(); classify(); });
  if (search !== null && unitColumn !== null)
    find("units").replaceChildren(...unitColumn.names.map(name => element("option", { value: name })));
  dark.addEventListener("change", () => { theme = null; draw(); });
  for (const moment of ["beforeprint", "afterprint"]) addEventListener(moment, () => {
    section.classList.toggle("fm-printed", moment === "beforeprint");
    theme = null;
    resize();
    state.fresh = false;
    drawNow();
  });
  new ResizeObserver(resize).observe(stage);
  const checked = section.querySelector("input[type=radio]:checked");  // a page that comes back keeps what was chosen
  if (checked !== null) state.column = columns[Number(checked.value)];
  if (search !== null) state.search = search.value.trim().toLowerCase();
  state.pictures = find("mosaic").checked;
  section.classList.add("fm-live-script");
  showLegend();
  resize();
  classify();
  section.featureMap = {
    get state() { return { ...state, column: state.column.title, numLit: isLit.reduce((sum, one) => sum + one, 0) }; },
    frame() { state.fresh = false; return drawNow(); },
    where(i) { const box = over.getBoundingClientRect(); return [box.left + screenX(i), box.top + screenY(i)]; },
    neighboursOf, select, zoom, home,
  };
}
