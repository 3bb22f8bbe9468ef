// The picture of the graph: one canvas to look through, one small map of the whole.
const PITCH = { x: 164, y: 56 };
const BOX = { w: 150, h: 38 };
const MAP = { w: 76 };

class Graph {
  constructor(stage, net, onSelect) {
    this.net = net;
    this.onSelect = onSelect;
    this.canvas = el("canvas", {
      id: "sight", tabindex: 0, role: "application",
      "aria-label": `Graph of ${many(net.size, "op")}. Arrows move, plus and minus zoom, `
        + "0 fits all, with an op selected arrows go to its neighbours, Escape lets go.",
    });
    this.small = el("canvas", { id: "map", "aria-hidden": "true" });
    stage.append(this.canvas, this.small);
    this.view = { x: 0, y: 0, k: 1 };
    this.focus = null;
    this.path = [];
    this.selected = -1;
    this.place();
    this.colours();
    this.listen();
    this.resize();
    new ResizeObserver(() => this.resize()).observe(stage);
  }

  // Where everything is, in the plane of the drawing.
  place() {
    const { net } = this;
    this.px = net.x.map((x) => x * PITCH.x);
    this.py = net.y.map((y) => y * PITCH.y);
    this.order = net.where(() => true).sort((a, b) => this.py[a] - this.py[b]);
    this.heights = this.order.map((i) => this.py[i]);
    this.box = {
      left: Math.min(...this.px) - BOX.w / 2 - 20, right: Math.max(...this.px) + BOX.w / 2 + 20,
      top: Math.min(...this.py) - 60, bottom: Math.max(...this.py) + 60,
    };
    this.bands = this.bandsOf();
  }

  // Stretches of rows that belong to one layer of the model, by its forward ops.
  bandsOf() {
    const { net } = this;
    const layer = (path) => {
      const steps = path.split(".");
      const at = steps.findIndex((s) => /^\d+$/.test(s));
      return steps.slice(0, at >= 0 ? at + 1 : 2).join(".");
    };
    const rows = new Map();
    for (const i of this.order) {
      const path = net.text("module", i);
      if (!path || this.px[i] > 0 || net.kind[i] === "replicate" || net.kind[i] === "end") continue;
      const [here, known] = [layer(path), rows.get(net.y[i]) || ""];
      if (here.length > known.length) rows.set(net.y[i], here);
    }
    const bands = [];
    for (const [y, name] of [...rows].sort((a, b) => a[0] - b[0])) {
      const last = bands[bands.length - 1];
      if (last && last.name === name) last.to = y;
      else bands.push({ name, from: y, to: y });
    }
    return bands;
  }

  colours() {
    const style = getComputedStyle(root);
    const names = ["paper", "card", "well", "ink", "soft", "faint", "line", "rule", "edge",
      "replicate", "shard", "partial", "iota", "refused", "none", "end", "focus", "on"];
    this.ink = Object.fromEntries(names.map((n) => [n, style.getPropertyValue(`--${n}`).trim()]));
    this.ink.sum = this.ink.partial;
    this.mono = style.getPropertyValue("--mono").trim();
    this.overview = null;
  }

  resize() {
    const stage = this.canvas.parentElement.getBoundingClientRect();
    const first = !this.w;
    [this.w, this.h] = [Math.max(stage.width, 50), Math.max(stage.height, 50)];
    this.ratio = window.devicePixelRatio || 1;
    const mapHeight = clamp((this.box.bottom - this.box.top) * 0.2, 60, Math.max(this.h - 130, 60));
    for (const [canvas, w, h] of [[this.canvas, this.w, this.h], [this.small, MAP.w, mapHeight]]) {
      canvas.width = w * this.ratio;
      canvas.height = h * this.ratio;
      canvas.style.width = `${w}px`;
      canvas.style.height = `${h}px`;
    }
    this.mapHeight = mapHeight;
    this.overview = null;
    if (first) this.home();
    this.draw();
  }

  // Ways to look.
  home() {
    const xs = [...this.px].sort((a, b) => a - b);
    const [left, right] = [xs[Math.floor(xs.length * 0.01)] - BOX.w, xs[Math.ceil(xs.length * 0.99) - 1] + BOX.w];
    const wide = (this.w - MAP.w - 50) / (right - left);
    const high = (this.h - 120) / (this.box.bottom - this.box.top);
    if (Math.min(wide, high) > 0.6) return this.fit();
    this.view.k = clamp(wide, 0.6, 1);
    this.view.x = (wide > 0.6 ? (left + right) / 2 : 0) + MAP.w / 2 / this.view.k;
    // The first op of the forward pass stands below the tools, and what is above it is left out.
    const start = Math.min(...this.py.filter((_, i) => this.px[i] < 0)) - PITCH.y;
    this.view.y = Math.max(this.box.top, start) + (this.h / 2 - 76) / this.view.k;
    return this.later();
  }

  // All, or some nodes, with so many pixels left free on the right.
  fit(list, room = 0) {
    const some = list && list.length ? list : null;
    const xs = some ? some.map((i) => this.px[i]) : [this.box.left, this.box.right];
    const ys = some ? some.map((i) => this.py[i]) : [this.box.top, this.box.bottom];
    const [left, right] = [Math.min(...xs) - (some ? 130 : 0), Math.max(...xs) + (some ? 130 : 0)];
    const [top, bottom] = [Math.min(...ys) - (some ? 60 : 0), Math.max(...ys) + (some ? 60 : 0)];
    const k = Math.min((this.w - MAP.w - 40 - room) / (right - left), (this.h - 120) / (bottom - top));
    this.view.k = clamp(k, 0.004, 1.15);
    this.view.x = (left + right) / 2 + (MAP.w + room) / 2 / this.view.k;
    this.view.y = (top + bottom) / 2;
    this.later();
  }

  // A path as a whole if it can be read so, else its beginning.
  fitPath(path) {
    this.fit(path, 150);
    if (this.view.k < 0.14 && path.length) this.centre(path[0], 0.7);
  }

  centre(i, k = Math.max(this.view.k, 0.6)) {
    this.view = { x: this.px[i], y: this.py[i], k };
    this.later();
  }

  // Both sides from where some nodes begin, large enough to read.
  read(list) {
    const top = Math.min(...list.map((i) => this.py[i]));
    this.view = { x: MAP.w / 2 / 0.6, y: top + (this.h / 2 - 110) / 0.6, k: 0.6 };
    this.later();
  }

  zoom(factor, sx = this.w / 2, sy = this.h / 2) {
    const { view } = this;
    const k = clamp(view.k * factor, 0.004, 3);
    view.x += (sx - this.w / 2) * (1 / view.k - 1 / k);
    view.y += (sy - this.h / 2) * (1 / view.k - 1 / k);
    view.k = k;
    this.later();
  }

  light(list) {
    this.focus = list ? new Set(list) : null;
    this.later();
  }

  follow(path) {
    this.path = path.filter((i) => i >= 0);
    this.later();
  }

  select(i, move = false) {
    this.selected = i;
    if (move && i >= 0) this.centre(i);
    this.onSelect(i);
    this.later();
  }

  later() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  // Drawing.
  draw() {
    this.frame = null;
    const g = this.canvas.getContext("2d");
    const { view, ratio } = this;
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.fillStyle = this.ink.card;
    g.fillRect(0, 0, this.w, this.h);
    const seen = {
      left: view.x - this.w / 2 / view.k, right: view.x + this.w / 2 / view.k,
      top: view.y - this.h / 2 / view.k, bottom: view.y + this.h / 2 / view.k,
    };
    this.drawBands(g, seen);
    g.setTransform(ratio * view.k, 0, 0, ratio * view.k,
      ratio * (this.w / 2 - view.x * view.k), ratio * (this.h / 2 - view.y * view.k));
    const route = new Set(this.path);
    const dim = this.focus || (route.size ? route : null);
    const nodes = this.visible(seen);
    this.drawEdges(g, seen, dim);
    for (const i of nodes) if (dim && !dim.has(i)) this.drawNode(g, i, 0.3);
    if (route.size) this.drawPath(g);
    for (const i of nodes) if (!dim || dim.has(i)) this.drawNode(g, i, 1);
    if (this.selected >= 0) this.drawNode(g, this.selected, 1, true);
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.drawLabels(g);
    this.drawMap(seen);
    root.dataset.drawn = nodes.length;
    root.dataset.path = this.path.map((i) => this.net.name[i]).join(" > ");
  }

  visible(seen) {
    const first = (y) => {
      let [low, high] = [0, this.heights.length];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.heights[middle] < y) low = middle + 1; else high = middle;
      }
      return low;
    };
    return this.order.slice(first(seen.top - BOX.h), first(seen.bottom + BOX.h)).filter(
      (i) => this.px[i] > seen.left - BOX.w && this.px[i] < seen.right + BOX.w,
    );
  }

  screen(x, y) {
    return [(x - this.view.x) * this.view.k + this.w / 2, (y - this.view.y) * this.view.k + this.h / 2];
  }

  // The backward half and every other layer, in faint tones.
  drawBands(g, seen) {
    const [middle] = this.screen(0, 0);
    g.fillStyle = this.ink.paper;
    g.fillRect(middle, 0, this.w - middle, this.h);
    g.strokeStyle = this.ink.line;
    g.lineWidth = 1;
    g.beginPath();
    for (const b of this.bands) {
      const y = b.from * PITCH.y - PITCH.y / 2;
      if (y < seen.top || y > seen.bottom || (b.to - b.from + 1) * this.view.k < 0.06) continue;
      const sy = Math.round(this.screen(0, y)[1]) + 0.5;
      g.moveTo(0, sy);
      g.lineTo(middle, sy);
    }
    g.moveTo(Math.round(middle) + 0.5, 0);
    g.lineTo(Math.round(middle) + 0.5, this.h);
    g.stroke();
  }

  drawLabels(g) {
    const { view } = this;
    g.font = `600 11px ${this.mono}`;
    g.textBaseline = "middle";
    const [middle] = this.screen(0, 0);
    let low = 64;
    for (const b of this.bands) {
      const top = this.screen(0, b.from * PITCH.y - PITCH.y / 2)[1];
      const bottom = this.screen(0, b.to * PITCH.y + PITCH.y / 2)[1];
      const y = Math.max(top + 11, Math.min(64, bottom - 11));
      if (bottom < 50 || top > this.h || y < low) continue;
      this.tag(g, b.name, 12, y, this.ink.soft, "left");
      low = y + 18;
    }
    const right = clamp(middle + 12, 12, this.w - MAP.w - 110);
    if (middle < this.w - MAP.w) this.tag(g, "backward \u2191", right, 64, this.ink.faint, "left");
    if (view.k < 0.45) this.drawNames(g);
    if (middle > 300) this.tag(g, "forward \u2193", Math.min(middle - 12, this.w - MAP.w - 30), 64, this.ink.faint, "right");
  }

  // Too far away to read, the ops of a path and the selected one are named beside their shapes.
  drawNames(g) {
    let last = -Infinity;
    for (const i of [...this.path, ...(this.selected >= 0 ? [this.selected] : [])]) {
      const [sx, sy] = this.screen(this.px[i] + BOX.w / 2, this.py[i]);
      if (Math.abs(sy - last) < 12) continue;
      last = sy;
      this.tag(g, this.net.label[i], sx + 7, sy, this.net.look(i) === "refused" ? this.ink.refused : this.ink.ink, "left");
    }
  }

  tag(g, text, x, y, colour, align) {
    const width = g.measureText(text).width;
    g.globalAlpha = 0.85;
    g.fillStyle = this.ink.card;
    g.fillRect(align === "left" ? x - 3 : x - width - 3, y - 8, width + 6, 16);
    g.globalAlpha = 1;
    g.fillStyle = colour;
    g.textAlign = align;
    g.fillText(text, x, y);
  }

  // Where an edge leaves and arrives, and how it bends between.
  curve(a, b) {
    const [ax, ay, bx, by] = [this.px[a], this.py[a], this.px[b], this.py[b]];
    const across = (ax < 0) !== (bx < 0);
    if (across || ay === by) {
      const s = bx > ax ? 1 : -1;
      const [x1, x2] = [ax + (s * BOX.w) / 2, bx - (s * BOX.w) / 2];
      const bend = Math.max(30, Math.abs(x2 - x1) / 2);
      return [x1, ay, x1 + s * bend, ay, x2 - s * bend, by, x2, by];
    }
    const s = by > ay ? 1 : -1;
    const [y1, y2] = [ay + (s * BOX.h) / 2, by - (s * BOX.h) / 2];
    const far = Math.abs(by - ay) > PITCH.y * 1.5 && Math.abs(ax - bx) < BOX.w * 0.6;
    const out = far ? (ax < 0 ? -1 : 1) * BOX.w * 0.72 : 0;
    const bend = s * Math.min(Math.abs(y2 - y1) / 2, 90);
    return [ax, y1, ax + out, y1 + bend, bx + out, y2 - bend, bx, y2];
  }

  trace(g, c, plain) {
    g.moveTo(c[0], c[1]);
    if (plain) g.lineTo(c[6], c[7]);
    else g.bezierCurveTo(c[2], c[3], c[4], c[5], c[6], c[7]);
  }

  drawEdges(g, seen, dim) {
    const { net, px, py, view } = this;
    const plain = view.k < 0.2;
    const groups = { main: [], side: [], lit: [] };
    for (let e = 0; e < net.edges.length; e += 2) {
      const [a, b] = [net.edges[e], net.edges[e + 1]];
      const [low, high] = py[a] < py[b] ? [py[a], py[b]] : [py[b], py[a]];
      if (high < seen.top || low > seen.bottom) continue;
      if (Math.max(px[a], px[b]) < seen.left - BOX.w || Math.min(px[a], px[b]) > seen.right + BOX.w) continue;
      if (a === this.selected || b === this.selected) groups.lit.push(e);
      else if ((px[a] < 0) !== (px[b] < 0) || net.kind[a] === "replicate") groups.side.push(e);
      else groups.main.push(e);
    }
    const fade = dim ? 0.35 : 1;
    const paint = (list, colour, alpha, width, arrows) => {
      g.strokeStyle = g.fillStyle = colour;
      g.globalAlpha = alpha;
      g.lineWidth = Math.max(width, 0.6 / view.k);
      g.beginPath();
      const curves = list.map((e) => this.curve(net.edges[e], net.edges[e + 1]));
      for (const c of curves) this.trace(g, c, plain);
      g.stroke();
      if (arrows && view.k > 0.4) {
        g.beginPath();
        for (const c of curves) this.arrow(g, c, 4.5);
        g.fill();
      }
    };
    paint(groups.side, this.ink.edge, 0.42 * fade, 1, false);
    paint(groups.main, this.ink.edge, fade, 1.4, true);
    paint(groups.lit, this.ink.focus, 1, 2, true);
    g.globalAlpha = 1;
  }

  arrow(g, c, size) {
    const [dx, dy] = c[7] === c[5] ? [Math.sign(c[6] - c[4]), 0] : [0, Math.sign(c[7] - c[5])];
    g.moveTo(c[6], c[7]);
    g.lineTo(c[6] - dx * size * 1.6 - dy * size, c[7] - dy * size * 1.6 - dx * size);
    g.lineTo(c[6] - dx * size * 1.6 + dy * size, c[7] - dy * size * 1.6 + dx * size);
  }

  drawPath(g) {
    const steps = this.path.slice(1).map((b, i) => this.curve(this.path[i], b));
    for (const [colour, width] of [[this.ink.card, 9], [this.ink.refused, 3.5]]) {
      g.strokeStyle = g.fillStyle = colour;
      g.lineWidth = Math.max(width, (width === 9 ? 5 : 2) / this.view.k);
      g.beginPath();
      for (const c of steps) this.trace(g, c, false);
      g.stroke();
    }
    g.beginPath();
    for (const c of steps) this.arrow(g, c, 7);
    g.fill();
  }

  // The outline of a node tells its placement without the colour.
  outline(g, look, x, y) {
    const [w, h] = [BOX.w, BOX.h];
    const [l, t, r, b] = [x - w / 2, y - h / 2, x + w / 2, y + h / 2];
    const polygon = (...p) => {
      g.moveTo(p[0], p[1]);
      for (let i = 2; i < p.length; i += 2) g.lineTo(p[i], p[i + 1]);
      g.closePath();
    };
    g.beginPath();
    if (look === "shard") g.roundRect(l, t, w, h, 12);
    else if (look === "end") g.roundRect(l, t, w, h, h / 2);
    else if (look === "partial" || look === "sum") polygon(l + 12, t, r - 12, t, r, y, r - 12, b, l + 12, b, l, y);
    else if (look === "iota") polygon(l + 12, t, r, t, r - 12, b, l, b);
    else if (look === "refused") polygon(l + 9, t, r - 9, t, r, t + 9, r, b - 9, r - 9, b, l + 9, b, l, b - 9, l, t + 9);
    else g.rect(l, t, w, h);
  }

  drawNode(g, i, alpha, chosen = false) {
    const { net, view } = this;
    const [x, y, look] = [this.px[i], this.py[i], net.look(i)];
    const colour = this.ink[look];
    const loud = look === "sum" || look === "refused";
    if (view.k < 0.2) {
      const [w, h] = [Math.max(BOX.w, 1.5 / view.k), Math.max(BOX.h, 1.2 / view.k)];
      g.globalAlpha = alpha * (loud || !net.backward[i] ? 1 : 0.6) * (look === "replicate" ? 0.55 : 1);
      g.fillStyle = chosen ? this.ink.focus : colour;
      g.fillRect(x - w / 2, y - h / 2, w, h);
      g.globalAlpha = 1;
      return;
    }
    this.outline(g, look, x, y);
    g.fillStyle = this.ink.card;
    g.globalAlpha = 1;
    g.fill();
    g.globalAlpha = loud ? alpha : alpha * (net.backward[i] ? 0.03 : 0.16);
    g.fillStyle = colour;
    g.fill();
    g.globalAlpha = alpha;
    g.lineWidth = chosen ? 3.5 : loud ? 2 : 1.3;
    g.strokeStyle = chosen ? this.ink.focus : net.spoilt.has(i) ? this.ink.refused : colour;
    g.setLineDash(net.spoilt.has(i) && look !== "refused" ? [5, 3] : look === "none" ? [2, 3] : []);
    g.stroke();
    g.setLineDash([]);
    if (view.k < 0.45) this.drawLetter(g, i, x, y, loud ? this.ink.on : colour);
    else this.drawText(g, i, x, y, loud ? this.ink.on : this.ink.ink, loud ? this.ink.on : colour);
    g.globalAlpha = 1;
  }

  drawLetter(g, i, x, y, colour) {
    g.textBaseline = "middle";
    g.textAlign = "center";
    g.fillStyle = colour;
    g.font = `700 24px ${this.mono}`;
    g.fillText(KINDS[this.net.look(i)].letter, x, y + 2);
  }

  drawText(g, i, x, y, ink, letter) {
    const { net } = this;
    const left = x - BOX.w / 2;
    g.textBaseline = "middle";
    g.textAlign = "center";
    g.fillStyle = letter;
    g.font = `700 14px ${this.mono}`;
    g.fillText(KINDS[net.look(i)].letter, left + 16, y + 1);
    const shape = net.text("shape", i);
    g.textAlign = "left";
    g.fillStyle = ink;
    g.font = `600 11.5px ${this.mono}`;
    const label = net.label[i].replace(/^gradient of /, "\u2207 ");
    g.fillText(short(label, 17), left + 29, shape ? y - 7 : y + 1);
    if (!shape) return;
    g.font = `10.5px ${this.mono}`;
    g.globalAlpha *= 0.75;
    g.fillText(short(shape, 18, true), left + 29, y + 9);
  }

  // The map: the whole graph, stretched to a strip, drawn once.
  drawMap(seen) {
    const { box, ratio } = this;
    const sx = MAP.w / (box.right - box.left);
    const sy = this.mapHeight / (box.bottom - box.top);
    const g = this.small.getContext("2d");
    g.setTransform(1, 0, 0, 1, 0, 0);
    g.clearRect(0, 0, this.small.width, this.small.height);
    this.overview ??= this.drawOverview(sx, sy);
    g.drawImage(this.overview, 0, 0);
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.path.length) {
      g.strokeStyle = this.ink.refused;
      g.lineWidth = 2;
      g.beginPath();
      for (const i of this.path) g.lineTo((this.px[i] - box.left) * sx, (this.py[i] - box.top) * sy);
      g.stroke();
    }
    const spot = (i, colour) => {
      g.fillStyle = colour;
      g.fillRect((this.px[i] - box.left) * sx - 3, (this.py[i] - box.top) * sy - 1.5, 6, 3);
    };
    for (const i of this.focus || []) spot(i, this.ink.ink);
    if (this.selected >= 0) spot(this.selected, this.ink.focus);
    const [l, t] = [clamp((seen.left - box.left) * sx, 1, MAP.w - 4), clamp((seen.top - box.top) * sy, 1, this.mapHeight - 4)];
    const [r, b] = [clamp((seen.right - box.left) * sx, 4, MAP.w - 1), clamp((seen.bottom - box.top) * sy, 4, this.mapHeight - 1)];
    g.strokeStyle = this.ink.ink;
    g.lineWidth = 1.5;
    g.strokeRect(l, t, r - l, b - t);
  }

  drawOverview(sx, sy) {
    const made = el("canvas", {});
    [made.width, made.height] = [this.small.width, this.small.height];
    const g = made.getContext("2d");
    g.scale(this.ratio, this.ratio);
    const [w, h] = [Math.max(BOX.w * sx, 2), clamp(BOX.h * sy, 1, 8)];
    for (const loud of [false, true]) {
      for (let i = 0; i < this.net.size; i++) {
        const look = this.net.look(i);
        if ((look === "sum" || look === "refused") !== loud) continue;
        g.globalAlpha = loud ? 1 : look === "replicate" ? 0.35 : this.net.backward[i] ? 0.55 : 0.9;
        g.fillStyle = this.ink[look];
        const [cx, cy] = [(this.px[i] - this.box.left) * sx, (this.py[i] - this.box.top) * sy];
        g.fillRect(cx - w / 2, cy - h / 2, w, h);
      }
    }
    return made;
  }

  // Mouse, touch and keys.
  at(sx, sy) {
    const x = (sx - this.w / 2) / this.view.k + this.view.x;
    const y = (sy - this.h / 2) / this.view.k + this.view.y;
    const [w, h] = [BOX.w / 2 + 2, Math.max(BOX.h / 2, 4 / this.view.k)];
    return this.order.find((i) => Math.abs(this.px[i] - x) <= w && Math.abs(this.py[i] - y) <= h) ?? -1;
  }

  listen() {
    const { canvas, small } = this;
    let drag = null;
    canvas.addEventListener("pointerdown", (e) => {
      drag = { x: e.offsetX, y: e.offsetY, moved: false };
      canvas.setPointerCapture(e.pointerId);
      canvas.classList.add("drag");
    });
    canvas.addEventListener("pointermove", (e) => {
      if (!drag) {
        const i = this.at(e.offsetX, e.offsetY);
        canvas.title = i < 0 ? "" : this.title(i);
        return;
      }
      const [dx, dy] = [e.offsetX - drag.x, e.offsetY - drag.y];
      drag.moved ||= Math.abs(dx) + Math.abs(dy) > 4;
      if (!drag.moved) return;
      this.view.x -= dx / this.view.k;
      this.view.y -= dy / this.view.k;
      [drag.x, drag.y] = [e.offsetX, e.offsetY];
      this.later();
    });
    canvas.addEventListener("pointerup", (e) => {
      canvas.classList.remove("drag");
      if (drag && !drag.moved) this.select(this.at(e.offsetX, e.offsetY));
      drag = null;
    });
    canvas.addEventListener("pointercancel", () => { drag = null; });
    canvas.addEventListener("wheel", (e) => {
      e.preventDefault();
      const lines = e.deltaMode === 1 ? 24 : 1;
      if (e.ctrlKey || e.metaKey) return this.zoom(Math.exp(-e.deltaY * lines * 0.003), e.offsetX, e.offsetY);
      const [dx, dy] = e.shiftKey ? [e.deltaY, 0] : [e.deltaX, e.deltaY];
      this.view.x += (dx * lines) / this.view.k;
      this.view.y += (dy * lines) / this.view.k;
      return this.later();
    }, { passive: false });
    canvas.addEventListener("dblclick", (e) => this.zoom(1.8, e.offsetX, e.offsetY));
    canvas.addEventListener("keydown", (e) => this.key(e));
    const jump = (e) => {
      if (e.type === "pointermove" && !e.buttons) return;
      const { box } = this;
      this.view.x = box.left + (e.offsetX / MAP.w) * (box.right - box.left);
      this.view.y = box.top + (e.offsetY / this.mapHeight) * (box.bottom - box.top);
      this.later();
    };
    small.addEventListener("pointerdown", jump);
    small.addEventListener("pointermove", jump);
  }

  key(e) {
    const step = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[e.key];
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    if (step && this.selected >= 0) this.walk(...step);
    else if (step) {
      this.view.x += (step[0] * 80) / this.view.k;
      this.view.y += (step[1] * 80) / this.view.k;
      this.later();
    } else if (e.key === "+" || e.key === "=") this.zoom(1.25);
    else if (e.key === "-") this.zoom(0.8);
    else if (e.key === "0") this.fit();
    else if (e.key === "PageDown" || e.key === "PageUp") {
      this.view.y += ((e.key === "PageDown" ? 0.8 : -0.8) * this.h) / this.view.k;
      this.later();
    } else if (e.key === "Home") this.home();
    else if (e.key === "Enter") {
      const near = this.order.reduce((best, i) => (this.far(i) < this.far(best) ? i : best), 0);
      this.select(near, true);
    } else if (e.key === "Escape") this.select(-1);
    else return;
    e.preventDefault();
  }

  far(i) { return (this.px[i] - this.view.x) ** 2 + (this.py[i] - this.view.y) ** 2; }

  // To the neighbour that lies furthest that way.
  walk(dx, dy) {
    const here = this.selected;
    const near = [...this.net.operands[here], ...this.net.users[here]];
    const along = (i) => (this.px[i] - this.px[here]) * dx + (this.py[i] - this.py[here]) * dy;
    const off = (i) => Math.abs((this.px[i] - this.px[here]) * dy) + Math.abs((this.py[i] - this.py[here]) * dx);
    const ways = near.filter((i) => along(i) > 0).sort((a, b) => off(a) - off(b) || along(a) - along(b));
    if (ways.length) this.select(ways[0], true);
  }

  title(i) {
    const { net } = this;
    return [net.label[i], net.text("shape", i), net.text("placement", i)].filter(Boolean).join("  ");
  }
}

// A text of at most so many letters: of names the end tells most, of shapes the beginning.
function short(text, most, head = false) {
  if (text.length <= most) return text;
  return head ? `${text.slice(0, most - 1)}\u2026` : `${text.slice(0, 4)}\u2026${text.slice(5 - most)}`;
}
