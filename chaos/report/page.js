"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [FROM, UNTIL, LOOK, LABEL, DETAIL, TRACK] = [0, 1, 2, 3, 4, 5];
  const AXIS = 40, TRACK_HEIGHT = 15, ROW_GAP = 4, HOST_GAP = 9, NAME_HEIGHT = 18, NARROW = 620, NEAR = 4, AROUND = 14;
  const byId = (id) => document.getElementById(id);
  const chart = byId("chart"), tall = byId("tall"), canvas = byId("canvas"), tip = byId("tip");
  const pen = canvas.getContext("2d");
  const looks = data.order.map((name) => ({ name, ...data.looks[name] }));
  const end = (bar) => (bar[UNTIL] === null ? bar[FROM] : bar[UNTIL]);
  const seconds = (ms, digits = 3) => (ms / 1000).toFixed(digits);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  // --- what is shown ---
  const edge = (data.end - data.begin) * 0.01;
  const whole = { from: data.begin - edge, to: data.end + edge };
  const view = { ...whole };
  const hidden = new Set();
  let chosen = null;   // {row, bar} or {violation}
  let matches = null;  // per text whether it has what is looked for; null: nothing is
  let band = null;     // [x, x] while a stretch is dragged
  let colour = {}, patterns = {}, width = 0, height = 0, gutter = 0, narrow = false, scheduled = false;

  for (const row of data.rows) {
    row.byLook = looks.map(() => []);
    for (const bar of row.bars) row.byLook[bar[LOOK]].push(bar);
  }
  const all = data.rows.flatMap((row) => row.bars.map((bar) => ({ row, bar }))).sort((a, b) => a.bar[FROM] - b.bar[FROM]);
  const shownRows = () => data.rows.filter((row) => !hidden.has(row.lane));
  const isMatch = (bar) => matches === null || matches[bar[LABEL]] || matches[bar[DETAIL]];

  function place() {
    let y = AXIS + 6, host = null;
    for (const row of shownRows()) {
      if (row.host !== host) {
        y += host === null ? 0 : HOST_GAP;
        row.first = y;
        if (narrow && row.host) y += NAME_HEIGHT;
        host = row.host;
      } else row.first = null;
      row.y = y;
      y += row.tracks * TRACK_HEIGHT + ROW_GAP;
    }
    return y + 6;
  }

  function resize() {
    width = chart.clientWidth;
    narrow = width < NARROW;
    gutter = narrow ? 58 : 128;
    const content = place();
    tall.style.height = `${content}px`;
    height = Math.min(content, chart.clientHeight || content);
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    paintAll();  // at once: a new size has wiped the canvas
  }

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    const names = [...data.order, "paper", "panel", "text", "faint", "line", "violation", "healed", "accent"];
    colour = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    patterns = Object.fromEntries(data.order.map((name) => [name, stripes(colour[name])]));
    for (const swatch of document.querySelectorAll(".swatch")) {
      const look = looks.find(({ name }) => name === swatch.dataset.look);
      const other = swatch.getContext("2d");
      other.clearRect(0, 0, 16, 12);
      paint(other, look, 1, 0, 14, 12);
    }
  }

  function stripes(ink) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 6;
    const tilePen = tile.getContext("2d");
    tilePen.globalAlpha = 0.3;
    tilePen.fillStyle = ink;
    tilePen.fillRect(0, 0, 6, 6);
    tilePen.globalAlpha = 1;
    tilePen.strokeStyle = ink;
    tilePen.lineWidth = 2.4;
    for (const shift of [-6, 0, 6]) {
      tilePen.beginPath();
      tilePen.moveTo(shift - 1, 7);
      tilePen.lineTo(shift + 7, -1);
      tilePen.stroke();
    }
    return pen.createPattern(tile, "repeat");
  }

  // --- drawing ---
  const x = (ms) => gutter + ((ms - view.from) / (view.to - view.from)) * (width - gutter);
  const time = (px) => view.from + ((px - gutter) / (width - gutter)) * (view.to - view.from);

  function draw() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => { scheduled = false; paintAll(); });
  }

  function paintAll() {
    const top = chart.scrollTop;
    pen.fillStyle = colour.paper;
    pen.fillRect(0, 0, width, height);
    pen.save();
    pen.translate(0, -top);
    grid(top);
    for (const row of shownRows()) {
      if (row.y + row.tracks * TRACK_HEIGHT >= top + AXIS && row.y <= top + height) paintRow(row);
      if (row.first !== null) paintHost(row);
    }
    pen.restore();
    moments();
    axis();
    if (band) {
      pen.fillStyle = colour.accent;
      pen.globalAlpha = 0.18;
      pen.fillRect(Math.min(...band), AXIS, Math.abs(band[1] - band[0]), height);
      pen.globalAlpha = 1;
    }
  }

  function tickStep() {
    const most = Math.max(2, (width - gutter) / 80), span = view.to - view.from;
    for (let power = 0.01; ; power *= 10)
      for (const factor of [1, 2, 5]) if (span / (power * factor) <= most) return power * factor;
  }

  function* ticks() {
    const step = tickStep();
    for (let number = Math.ceil(view.from / step); number * step <= view.to; number++) yield [number * step, step];
  }

  function grid(top) {
    pen.fillStyle = colour.line;
    for (const [ms] of ticks()) if (x(ms) >= gutter) pen.fillRect(Math.round(x(ms)), top + AXIS, 1, height);
  }

  function axis() {
    pen.fillStyle = colour.panel;
    pen.fillRect(0, 0, width, AXIS);
    pen.fillStyle = colour.line;
    pen.fillRect(0, AXIS - 1, width, 1);
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "alphabetic";
    pen.fillStyle = colour.faint;
    for (const [ms, step] of ticks()) {
      const text = `${seconds(ms, Math.max(0, -Math.floor(Math.log10(step / 1000) + 1e-9)))} s`;
      const left = x(ms) + 3;
      if (left >= gutter && left + pen.measureText(text).width < width) pen.fillText(text, left, AXIS - 7);
    }
    flags();
  }

  function paintHost(row) {
    pen.fillStyle = colour.line;
    pen.fillRect(0, row.first - 5, width, 1);
    pen.fillStyle = colour.text;
    pen.font = "600 12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.textAlign = "left";
    const y = narrow ? row.first + NAME_HEIGHT / 2 - 2 : row.y + TRACK_HEIGHT / 2;
    pen.fillText(fitted(row.host, narrow ? width : gutter - 66), 8, y);
  }

  function paintRow(row) {
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    pen.fillStyle = colour.faint;
    pen.fillText(row.title, gutter - 7, row.y + TRACK_HEIGHT / 2);
    pen.textAlign = "left";
    pen.save();
    pen.beginPath();
    pen.rect(gutter, row.y - 2, width - gutter, row.tracks * TRACK_HEIGHT + 4);
    pen.clip();
    looks.forEach((look, number) => {
      const painted = new Array(row.tracks).fill(-1);
      for (const bar of row.byLook[number]) {
        if (bar[FROM] > view.to) break;
        if (end(bar) < view.from) continue;
        const left = Math.max(x(bar[FROM]), gutter - 4), right = Math.min(Math.max(x(end(bar)), left + 2), width + 4);
        if (right <= painted[bar[TRACK]] + 0.5) continue;  // marks that fall on one pixel are painted once
        painted[bar[TRACK]] = right;
        const y = row.y + bar[TRACK] * TRACK_HEIGHT;
        pen.globalAlpha = isMatch(bar) ? 1 : 0.13;
        paint(pen, look, left, y, right - left - (right - left > 4 ? 1 : 0), TRACK_HEIGHT - 2);
        if (right - left > 34) caption(bar, look, left, y, right - left);
      }
    });
    pen.globalAlpha = 1;
    if (chosen && chosen.row === row) {
      const { bar } = chosen, left = x(bar[FROM]) - 2, right = Math.max(x(end(bar)), x(bar[FROM]) + 2) + 2;
      pen.strokeStyle = colour.text;
      pen.lineWidth = 2;
      pen.strokeRect(left, row.y + bar[TRACK] * TRACK_HEIGHT - 1, right - left, TRACK_HEIGHT);
    }
    pen.restore();
  }

  function paint(on, look, left, y, wide, tallest) {
    const high = Math.max(2, Math.round(tallest * look.height)), top = y + tallest - high;
    if (look.filling === "full" || wide < 4) {
      on.fillStyle = colour[look.name];
      on.fillRect(left, top, wide, high);
    } else if (look.filling === "stripes") {
      on.fillStyle = patterns[look.name];
      on.fillRect(left, top, wide, high);
    } else {
      const alpha = on.globalAlpha;
      on.globalAlpha = alpha * 0.2;
      on.fillStyle = colour[look.name];
      on.fillRect(left, top, wide, high);
      on.globalAlpha = alpha;
      on.strokeStyle = colour[look.name];
      on.lineWidth = 1;
      on.strokeRect(left + 0.5, top + 0.5, wide - 1, high - 1);
    }
  }

  function caption(bar, look, left, y, wide) {
    if (look.name === "alive") return;
    const from = Math.max(left, gutter) + 4;
    pen.font = "10.5px system-ui, sans-serif";
    const text = fitted(data.texts[bar[LABEL]], left + wide - from - 4);
    if (!text) return;
    const middle = y + (TRACK_HEIGHT - 2) / 2 + (look.height < 1 ? 1.5 : 0.5);
    if (look.filling === "stripes") {  // nobody reads letters on stripes
      pen.fillStyle = colour.paper;
      pen.fillRect(from - 3, middle - 6, pen.measureText(text).width + 6, 12);
    }
    pen.fillStyle = look.filling === "full" ? colour.paper : colour.text;
    pen.fillText(text, from, middle);
  }

  function fitted(text, room) {
    const line = text.split("\n", 1)[0];
    if (pen.measureText(line).width <= room) return line;
    let [low, high] = [0, Math.min(line.length, 200)];
    while (low < high) {
      const half = (low + high + 1) >> 1;
      if (pen.measureText(`${line.slice(0, half)}…`).width <= room) low = half; else high = half - 1;
    }
    return low >= 6 ? `${line.slice(0, low)}…` : "";
  }

  function moments() {
    for (const ms of [data.healed, data.settled]) upright(ms, colour.healed, [], 2);
    let last = -1;
    for (const [ms] of data.violations) {
      if (x(ms) < last + 1) continue;  // thousands of them may lie on one pixel
      upright(ms, colour.violation, [6, 3], 1.5);
      last = x(ms);
    }
    if (chosen && chosen.violation !== undefined)
      upright(data.violations[chosen.violation][0], colour.violation, [], 3);
  }

  function upright(ms, ink, dashes, thick) {
    if (ms === null || x(ms) < gutter || x(ms) > width) return;
    pen.strokeStyle = ink;
    pen.lineWidth = thick;
    pen.setLineDash(dashes);
    pen.beginPath();
    pen.moveTo(x(ms), AXIS);
    pen.lineTo(x(ms), height);
    pen.stroke();
    pen.setLineDash([]);
  }

  function flagList() {
    const list = data.violations.map(([ms], number) => ({ ms, text: `✗${number + 1}`, ink: colour.violation, number }));
    if (data.healed !== null) list.push({ ms: data.healed, text: "healed", ink: colour.healed });
    if (data.settled !== null) list.push({ ms: data.settled, text: "settled", ink: colour.healed });
    return list;
  }

  function flags() {
    pen.font = "600 11px system-ui, sans-serif";
    let free = gutter;
    for (const flag of flagList().sort((a, b) => a.ms - b.ms)) {
      const wide = pen.measureText(flag.text).width, left = Math.min(x(flag.ms), width - wide - 2);
      if (x(flag.ms) < gutter || x(flag.ms) > width || left < free) continue;
      pen.fillStyle = flag.ink;
      pen.fillRect(x(flag.ms) - 1, AXIS - 6, 2, 6);
      pen.fillText(flag.text, left, 14);
      free = left + wide + 5;
    }
  }

  // --- looking closer ---
  function show(from, to) {
    const span = clamp(to - from, 2, whole.to - whole.from);
    const middle = clamp((from + to) / 2, whole.from + span / 2, whole.to - span / 2);
    view.from = middle - span / 2;
    view.to = middle + span / 2;
    tip.hidden = true;
    draw();
  }
  const zoom = (factor, at) => show(at - (at - view.from) * factor, at + (view.to - at) * factor);
  const pan = (ms) => show(view.from + clamp(ms, whole.from - view.from, whole.to - view.to), view.to + clamp(ms, whole.from - view.from, whole.to - view.to));
  const chosenTime = () => {
    if (!chosen) return null;
    return chosen.violation === undefined ? chosen.bar[FROM] : data.violations[chosen.violation][0];
  };
  const focusTime = () => {
    const at = chosenTime();
    return at !== null && at >= view.from && at <= view.to ? at : (view.from + view.to) / 2;
  };

  function choose(what) {
    chosen = what;
    const at = chosenTime();
    if (at !== null && (at < view.from || at > view.to)) {
      const half = (view.to - view.from) / 2;
      show(at - half, at + half);
    }
    if (what && what.row) {
      const low = what.row.y - AXIS - 20, high = what.row.y + what.row.tracks * TRACK_HEIGHT + 20 - height;
      if (chart.scrollTop > low) chart.scrollTop = low;
      else if (chart.scrollTop < high) chart.scrollTop = high;
    }
    describe();
    draw();
  }

  function element(name, text, parent) {
    const made = document.createElement(name);
    made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }
  const span = (bar) => (bar[UNTIL] === null ? `${seconds(bar[FROM])} s` : `${seconds(bar[FROM])} – ${seconds(bar[UNTIL])} s, for ${seconds(bar[UNTIL] - bar[FROM])} s`);
  const where = (row) => [row.host, row.lane, row.title].filter((part, place, parts) => part && part !== parts[place - 1]).join(" · ");

  function describe() {
    const panel = byId("chosen");
    panel.replaceChildren();
    if (!chosen) {
      element("p", "Choose an event to see all of it.", panel).className = "note";
      byId("around").replaceChildren();
      return;
    }
    if (chosen.violation !== undefined) {
      const [ms, invariant, detail] = data.violations[chosen.violation];
      element("h3", `Violation ${chosen.violation + 1}: ${invariant}`, panel);
      element("p", `${seconds(ms)} s`, panel).className = "note";
      element("pre", detail, panel);
    } else {
      const { row, bar } = chosen;
      element("h3", data.texts[bar[LABEL]], panel);
      element("p", `${where(row)} · ${span(bar)}`, panel).className = "note";
      element("pre", data.texts[bar[DETAIL]], panel);
    }
    listAround();
  }

  function listAround() {
    const at = chosenTime();
    let low = 0, high = all.length;
    while (low < high) {
      const half = (low + high) >> 1;
      if (all[half].bar[FROM] < at) low = half + 1; else high = half;
    }
    const fits = (event) => !hidden.has(event.row.lane) && isMatch(event.bar);
    const before = [], after = [];
    for (let place = low - 1; place >= 0 && before.length < AROUND / 2; place--) if (fits(all[place])) before.unshift(all[place]);
    for (let place = low; place < all.length && after.length < AROUND; place++) if (fits(all[place])) after.push(all[place]);
    const lines = [...before, ...after].map((event) => {
      const line = document.createElement("tr");
      element("td", seconds(event.bar[FROM]), line);
      element("td", event.row.host, line);
      element("td", event.row.title, line);
      const button = element("button", data.texts[event.bar[LABEL]], element("td", "", line));
      button.type = "button";
      button.addEventListener("click", () => { choose(event); chart.focus({ preventScroll: true }); });
      if (chosen.bar === event.bar) line.setAttribute("aria-current", "true");
      return line;
    });
    byId("around").replaceChildren(...lines);
  }

  function under(px, py) {
    const y = py + chart.scrollTop;
    if (py < AXIS || px < gutter) return null;
    const row = shownRows().find((each) => y >= each.y - 2 && y < each.y + each.tracks * TRACK_HEIGHT + 2);
    if (!row) return null;
    const track = clamp(Math.floor((y - row.y) / TRACK_HEIGHT), 0, row.tracks - 1);
    let best = null;
    for (const bar of row.bars) {  // the gravest, then the shortest: what lies on top
      if (bar[TRACK] !== track || x(bar[FROM]) > px + NEAR || x(end(bar)) < px - NEAR) continue;
      const inside = x(bar[FROM]) <= px && x(end(bar)) >= px;
      const rank = [isMatch(bar), inside, bar[LOOK], bar[FROM] - end(bar)];
      if (!best || isAbove(rank, best.rank)) best = { row, bar, rank };
    }
    return best && { row: best.row, bar: best.bar };
  }

  function isAbove(rank, other) {
    const place = rank.findIndex((part, number) => part !== other[number]);
    return place >= 0 && rank[place] > other[place];
  }

  function violationUnder(px, py) {
    const near = data.violations.map(([ms], number) => [Math.abs(x(ms) - px), number]).filter(([far]) => far <= NEAR + (py < AXIS ? 10 : 0));
    return near.length ? { violation: near.sort((a, b) => a[0] - b[0])[0][1] } : null;
  }

  function hover(event) {
    const [px, py] = position(event);
    const what = (py < AXIS ? null : under(px, py)) || (px >= gutter ? violationUnder(px, py) : null);
    tip.hidden = !what;
    canvas.style.cursor = what ? "pointer" : py < AXIS ? "zoom-in" : "crosshair";
    if (!what) return;
    tip.replaceChildren();
    if (what.violation !== undefined) {
      const [ms, invariant, detail] = data.violations[what.violation];
      element("b", `✗ ${what.violation + 1}. ${invariant}`, tip);
      tip.append(`${seconds(ms)} s\n${detail.slice(0, 600)}`);
    } else {
      element("b", data.texts[what.bar[LABEL]], tip);
      tip.append(`${where(what.row)}\n${span(what.bar)}\n${data.texts[what.bar[DETAIL]].split("\n").slice(0, 8).join("\n").slice(0, 600)}`);
    }
    const box = tip.getBoundingClientRect();
    tip.style.left = `${clamp(event.clientX + 14, 4, Math.max(4, window.innerWidth - box.width - 4))}px`;
    tip.style.top = `${event.clientY + 18 + box.height > window.innerHeight ? Math.max(4, event.clientY - box.height - 10) : event.clientY + 18}px`;
  }

  function position(event) {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  // --- pointer, fingers, wheel ---
  const fingers = new Map();
  let start = null;  // {px, py, moved, view, apart}
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const [px, py] = position(event);
    fingers.set(event.pointerId, px);
    canvas.setPointerCapture(event.pointerId);
    start = { px, py, moved: false, view: { ...view }, fingers: [...fingers.values()] };
    tip.hidden = true;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!start || !fingers.has(event.pointerId)) { if (event.pointerType === "mouse") hover(event); return; }
    const [px] = position(event);
    fingers.set(event.pointerId, px);
    start.moved ||= Math.abs(px - start.px) > NEAR;
    if (!start.moved) return;
    const each = (start.view.to - start.view.from) / (width - gutter);
    if (event.pointerType === "mouse") {
      band = [clamp(start.px, gutter, width), clamp(px, gutter, width)];
      draw();
    } else if (fingers.size === 2 && start.fingers.length === 2) {
      const [a, b] = start.fingers, [c, d] = [...fingers.values()];
      const scale = Math.max(8, Math.abs(a - b)) / Math.max(8, Math.abs(c - d));
      const held = start.view.from + ((a + b) / 2 - gutter) * each, left = held - ((c + d) / 2 - gutter) * each * scale;
      show(left, left + (start.view.to - start.view.from) * scale);
    } else if (fingers.size === 1) {
      const by = clamp((start.px - px) * each, whole.from - start.view.from, whole.to - start.view.to);
      show(start.view.from + by, start.view.to + by);
    }
  });
  function released(event) {
    if (!fingers.delete(event.pointerId) || !start) return;
    const [px, py] = position(event);
    if (band) {
      const [from, to] = band.map(time).sort((a, b) => a - b);
      band = null;
      show(from, to);
    } else if (!start.moved && event.type === "pointerup") {
      const what = under(px, py) || violationUnder(px, py);
      if (what) choose(what);
    }
    start = fingers.size ? { ...start, moved: true, px: [...fingers.values()][0], view: { ...view }, fingers: [...fingers.values()] } : null;
  }
  canvas.addEventListener("pointerup", released);
  canvas.addEventListener("pointercancel", released);
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("dblclick", () => show(whole.from, whole.to));
  canvas.addEventListener("wheel", (event) => {
    const [px, py] = position(event);
    const sideways = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
    if (event.ctrlKey || event.metaKey || py < AXIS) zoom(Math.exp(clamp(event.deltaY, -120, 120) * 0.004), time(Math.max(px, gutter)));
    else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan((sideways / (width - gutter)) * (view.to - view.from));
    else return;
    event.preventDefault();
  }, { passive: false });
  chart.addEventListener("scroll", () => { tip.hidden = true; draw(); });

  // --- keys ---
  function step(direction) {
    if (!chosen || !chosen.row || hidden.has(chosen.row.lane)) {
      const at = chosenTime() === null ? focusTime() : chosenTime();
      const rows = shownRows().filter((row) => row.bars.some(isMatch));
      if (rows.length) choose({ row: rows[0], bar: nearest(rows[0], at) });
      return;
    }
    const bars = chosen.row.bars;
    for (let place = bars.indexOf(chosen.bar) + direction; place >= 0 && place < bars.length; place += direction)
      if (isMatch(bars[place])) return choose({ row: chosen.row, bar: bars[place] });
  }
  function nearest(row, at) {
    const far = (bar) => Math.max(0, bar[FROM] - at, at - end(bar)) + Math.abs(bar[FROM] - at) * 1e-6;
    return row.bars.filter(isMatch).reduce((best, bar) => (far(bar) < far(best) ? bar : best));
  }
  function stepRow(direction) {
    if (!chosen || !chosen.row || hidden.has(chosen.row.lane)) return step(direction);
    const rows = shownRows(), at = chosenTime();
    for (let place = rows.indexOf(chosen.row) + direction; place >= 0 && place < rows.length; place += direction)
      if (rows[place].bars.some(isMatch)) return choose({ row: rows[place], bar: nearest(rows[place], at) });
  }
  function stepViolation(direction) {
    if (!data.violations.length) return;
    const last = chosen && chosen.violation !== undefined ? chosen.violation : direction > 0 ? -1 : data.violations.length;
    toViolation(clamp(last + direction, 0, data.violations.length - 1));
  }
  function toViolation(number) {
    const at = data.violations[number][0], half = Math.min(view.to - view.from, (whole.to - whole.from) / 6) / 2;
    show(at - half, at + half);
    choose({ violation: number });
  }
  const quarter = () => (view.to - view.from) / 4;
  const keys = {
    ArrowLeft: (event) => (event.shiftKey ? pan(-quarter()) : step(-1)),
    ArrowRight: (event) => (event.shiftKey ? pan(quarter()) : step(1)),
    ArrowUp: () => stepRow(-1),
    ArrowDown: () => stepRow(1),
    "+": () => zoom(0.5, focusTime()),
    "=": () => zoom(0.5, focusTime()),
    "-": () => zoom(2, focusTime()),
    0: () => show(whole.from, whole.to),
    n: () => stepViolation(1),
    p: () => stepViolation(-1),
    Escape: () => choose(null),
  };
  chart.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act(event);
  });

  // --- the rest of the page ---
  byId("in").addEventListener("click", () => zoom(0.5, focusTime()));
  byId("out").addEventListener("click", () => zoom(2, focusTime()));
  byId("fit").addEventListener("click", () => show(whole.from, whole.to));
  for (const button of document.querySelectorAll("[data-lane]"))
    button.addEventListener("click", () => {
      const lane = button.dataset.lane, hide = !hidden.has(lane);
      if (hide) hidden.add(lane); else hidden.delete(lane);
      button.setAttribute("aria-pressed", String(!hide));
      resize();
      describe();
    });
  for (const button of document.querySelectorAll("[data-violation]"))
    button.addEventListener("click", () => {
      toViolation(Number(button.dataset.violation));
      chart.scrollIntoView({ block: "nearest" });
    });
  byId("find").addEventListener("input", (event) => {
    const needle = event.target.value.trim().toLowerCase();
    matches = needle ? data.texts.map((text) => text.toLowerCase().includes(needle)) : null;
    const count = needle ? all.filter(({ bar }) => isMatch(bar)).length : 0;
    byId("found").value = needle ? `${count} event${count === 1 ? "" : "s"}` : "";
    describe();
    draw();
  });
  byId("find").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const after = chosenTime() === null ? -Infinity : chosenTime();
    const fitting = all.filter(({ row, bar }) => !hidden.has(row.lane) && isMatch(bar));
    const next = fitting.find(({ bar }) => bar[FROM] > after) || fitting[0];
    if (matches && next) choose(next);
  });
  byId("copy").addEventListener("click", () => {
    const range = document.createRange();
    range.selectNodeContents(byId("replay"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    byId("copy").textContent = document.execCommand("copy") ? "copied" : "selected";  // the newer way refuses on file://
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); draw(); });
  readColours();
  new ResizeObserver(resize).observe(chart);
  resize();
  if (data.violations.length) choose({ violation: 0 });
})();
