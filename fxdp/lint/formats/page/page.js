// The page: head, story, stage, and what a click in one does to the others.
const VERDICTS = { proven: ["\u2713", "Proven"], refused: ["\u2715", "Refused"], failed: ["!", "Failed"] };

class Page {
  constructor(number) {
    this.number = number;
    this.model = DATA.models[number];
    this.net = this.model.graph ? new Net(this.model.graph) : null;
    this.story = document.getElementById("story");
    this.stage = document.getElementById("stage");
    KINDS.none.word = this.model.status === "proven" ? "added after the proof" : "not placed";
    KINDS.none.means = this.model.status === "proven" ? "tells the samples of the loss apart" : "nothing is known of it";
    this.head();
    this.stage.replaceChildren();
    this.picture();
    this.tell();
    const first = this.net ? this.net.routes.findIndex((r) => r.some((i) => i >= 0)) : -1;
    if (first >= 0) this.path(first);
    root.dataset.model = this.model.target;
    root.dataset.nodes = this.net ? this.net.size : 0;
  }

  // The head.
  head() {
    const { model, net } = this;
    const [sign, word] = VERDICTS[model.status];
    const ops = net ? net.where((i) => net.kind[i] !== "end").length : 0;
    const figure = (n, one, more) => el("span", {}, el("b", {}, n.toLocaleString("en")), ` ${n === 1 ? one : more || `${one}s`}`);
    const trained = net ? net.where((i) => net.label[i].startsWith("gradient of ")).length : 0;
    const models = DATA.models.length < 2 ? null : el("nav", { class: "models", "aria-label": "Models" },
      DATA.models.map((m, i) => el("button", { type: "button", "aria-pressed": String(i === this.number),
        onclick: () => { page = new Page(i); } },
      el("span", { class: m.status === "refused" ? "bad" : "" }, VERDICTS[m.status][0]), m.target)));
    document.getElementById("head").replaceChildren(
      el("span", { class: `verdict ${model.status}` }, el("span", { "aria-hidden": "true" }, sign), word),
      el("h1", {}, model.target),
      el("p", { class: "figures" },
        model.findings.length ? figure(model.findings.length, "fault") : null,
        net ? figure(ops, "op") : null, net ? figure(net.sums.size, "sum over samples", "sums over samples") : null,
        net ? figure(trained, "gradient") : null,
        el("span", {}, el("b", {}, model.seconds.toFixed(model.seconds < 10 ? 1 : 0)), " s")),
      el("span", { class: "made" }, `fxdp ${DATA.versions.fxdp}, torch ${DATA.versions.torch}`),
      ...(models ? [models] : []));
  }

  // The story, on the left.
  tell() {
    const { model } = this;
    const source = new Source(model, this.net, {
      line: (ops, row) => this.line(ops, row),
      path: (n) => this.path(this.following === n ? -1 : n),
      step: (n, i) => this.step(n, i),
    });
    const section = (title, aside, ...children) => el("section", {},
      el("h2", {}, title, aside ? el("small", {}, aside) : null), ...children);
    const parts = this.summary().map((text) => el("p", { class: "lead" }, text));
    if (model.trouble) {
      parts.push(section("What went wrong", "", el("div", { class: "card" }, el("pre", { class: "trouble" }, model.trouble),
        model.details ? el("details", {}, el("summary", { class: "trouble" }, "Traceback"), el("pre", { class: "trouble" }, model.details)) : null)));
    }
    if (model.findings.length) parts.push(section("Faults", "in the order of the lines", ...source.faulty()));
    if (this.model.certificate) parts.push(section("Certificate", "", ...this.certificate()));
    if (model.modules.length > 1 || this.net) {
      this.tree = new Tree(model, this.net, (path, pinned) => this.module(path, pinned));
      parts.push(section("Submodules", "point at one to see its ops", this.tree.list));
    }
    if (model.notes.length) parts.push(section("Allowed by the source", "", el("div", { class: "card" }, model.notes.map((n) => el("p", { class: "trouble" }, n)))));
    const others = source.others();
    if (others.length) parts.push(section(model.findings.length ? "Other source" : "Source", "click a line number to see its ops", ...others));
    this.story.replaceChildren(...parts);
    this.story.scrollTop = 0;
    const measure = () => this.story.style.setProperty("--room", `${Math.max(this.story.clientWidth - 108, 240)}px`);
    measure();
    this.watch?.disconnect();
    this.watch = new ResizeObserver(measure);
    this.watch.observe(this.story);
  }

  summary() {
    const { model, net } = this;
    if (model.status === "failed") return ["This model could not be checked."];
    if (model.status === "refused") {
      const n = model.findings.length;
      const ends = new Set(model.findings.map((f) => f.route[f.route.length - 1]).filter(Boolean));
      const spoils = ends.size ? `, spoiling ${[...ends].slice(0, 2).map((e) => `the ${e}`).join(" and ")}${ends.size > 2 ? " and more" : ""}` : "";
      return [`${n === 1 ? "One fault keeps" : `${n} faults keep`} this model from being trained privately${spoils}.`];
    }
    const sums = net ? net.sums.size : 0;
    return ["Every parameter\u2019s gradient is a sum of per-sample gradients, so each sample can be clipped on its own.",
      net ? `The graph turns samples into sums in ${many(sums, "place")}; they are the solid shapes marked \u03a3.` : ""].filter(Boolean);
  }

  certificate() {
    const { certificate: c } = this.model;
    const rows = c.obligations.map((o) => el("tr", {}, el("td", {}, o.name),
      el("td", {}, o.promise, el("div", { class: "evidence" }, o.evidence)),
      el("td", { class: o.proven ? "state" : "state assumed" }, o.proven ? "\u2713 proven" : "\u25cb assumed")));
    for (const a of c.assumptions) {
      rows.push(el("tr", {}, el("td", {}, ""), el("td", {}, a.what, a.by ? el("div", { class: "evidence" }, `by ${a.by}`) : null),
        el("td", { class: "state assumed" }, "\u25cb assumed")));
    }
    for (const text of c.fallbacks) {
      rows.push(el("tr", {}, el("td", {}, ""), el("td", {}, "compiled code replaced by its graph", el("div", { class: "evidence" }, text)), el("td", { class: "state" }, "checked")));
    }
    const versions = Object.entries(c.versions).map(([k, v]) => `${k} ${v}`).join(", ");
    return [el("div", { class: "card" }, el("table", { class: "duties" }, el("tbody", {}, rows))),
      el("p", { class: "hash" }, `graph ${c.graph}${versions ? `; ${versions}` : ""}`)];
  }

  // The stage, on the right.
  picture() {
    this.following = -1;
    if (!this.net || !this.net.size) {
      this.graph = null;
      this.stage.append(el("p", { class: "blank" }, this.model.status === "failed" ? "There is no graph: the model was not captured."
        : "There is no graph to show for this model."));
      return;
    }
    this.graph = new Graph(this.stage, this.net, (i) => this.about(i));
    this.hits = el("output", {});
    this.search = el("input", { type: "search", placeholder: "Find ops, shapes, modules", "aria-label": "Find in the graph",
      oninput: () => this.find(), onkeydown: (e) => this.findKey(e) });
    const button = (text, title, act) => el("button", { type: "button", title, "aria-label": title, onclick: act }, text);
    this.stage.append(el("div", { class: "tools" }, this.search, this.hits, el("span", { class: "gapper" }),
      button("\u2212", "Zoom out (-)", () => this.graph.zoom(0.8)), button("+", "Zoom in (+, or Ctrl and the wheel)", () => this.graph.zoom(1.25)),
      button("Fit", "Fit all (0)", () => this.graph.fit()), button("Top", "To the start (Home)", () => this.graph.home())),
    this.foot = el("div", { class: "foot" }, this.legend()));
  }

  legend() {
    const counts = {};
    for (let i = 0; i < this.net.size; i++) counts[this.net.look(i)] = (counts[this.net.look(i)] || 0) + 1;
    this.filters = Object.keys(KINDS).filter((k) => counts[k]).map((kind) => el("button", { type: "button", "aria-pressed": "false",
      "data-kind": kind, title: KINDS[kind].means, onclick: () => this.filter(kind) }, sample(kind), KINDS[kind].word, el("span", {}, counts[kind].toLocaleString("en"))));
    return el("div", { class: "legend", role: "group", "aria-label": "Placements" }, this.filters);
  }

  // What shows what.
  path(n) {
    this.following = n;
    for (const b of this.story.querySelectorAll(".show")) {
      const on = Number(b.dataset.finding) === n;
      b.setAttribute("aria-pressed", String(on));
      b.textContent = on ? "Path shown in the graph" : "Show this path in the graph";
    }
    if (!this.graph) return;
    this.press(null);
    this.graph.light(null);
    const route = n < 0 ? [] : this.net.routes[n].filter((i) => i >= 0);
    this.graph.follow(route);
    if (route.length) this.graph.fitPath(route);
  }

  step(n, i) {
    const at = this.net ? this.net.routes[n][i] : -1;
    if (this.following !== n) this.path(n);
    if (at >= 0) this.graph.select(at, true);
  }

  line(ops, row) {
    const on = !row.classList.contains("on");
    for (const other of this.story.querySelectorAll(".row.on")) other.classList.remove("on");
    row.classList.toggle("on", on);
    this.only(on ? ops : null, true);
  }

  module(path, pinned) {
    if (!this.graph) return;
    const ops = path == null || path === "" ? null : this.net.within(path);
    if (pinned) this.only(ops, true);
    else this.graph.light(ops || this.kept || null);
  }

  filter(kind) {
    const on = this.filters.find((b) => b.dataset.kind === kind).getAttribute("aria-pressed") !== "true";
    this.press(on ? kind : null);
    this.only(on ? this.net.where((i) => this.net.look(i) === kind) : null);
  }

  press(kind) {
    for (const b of this.filters || []) b.setAttribute("aria-pressed", String(b.dataset.kind === kind));
  }

  only(ops, move = false) {
    if (!this.graph) return;
    this.kept = ops;
    this.graph.light(ops);
    if (ops && ops.length && move) {
      this.graph.fit(ops);
      if (this.graph.view.k < 0.4) this.graph.read(ops);
    }
  }

  find() {
    const words = this.search.value.trim();
    this.found = words ? this.net.matching(words) : [];
    this.foundAt = -1;
    this.hits.textContent = words ? many(this.found.length, "hit") : "";
    this.press(null);
    this.only(words ? this.found : null);
    if (this.found.length) this.graph.centre(this.found[0]);
  }

  findKey(e) {
    if (e.key === "Escape") { this.search.value = ""; this.find(); }
    if (e.key !== "Enter" || !this.found?.length) return;
    this.foundAt = (this.foundAt + (e.shiftKey ? -1 : 1) + this.found.length) % this.found.length;
    this.hits.textContent = `${this.foundAt + 1} of ${this.found.length}`;
    this.graph.select(this.found[this.foundAt], true);
  }

  about(i) {
    this.stage.querySelector(".about")?.remove();
    if (i < 0) return;
    const { net } = this;
    const links = (list) => (list.length ? [...list.slice(0, 12).map((j) => el("button", { type: "button", onclick: () => this.graph.select(j, true) }, net.label[j])),
      list.length > 12 ? `and ${list.length - 12} more` : ""] : null);
    const file = net.file[i] >= 0 ? `${DATA.sources[net.file[i]].path}:${net.line[i]}` : null;
    const code = file ? (DATA.sources[net.file[i]].lines[net.line[i] - 1] || "").trim() : null;
    const look = net.look(i);
    const state = look === "refused" ? "refused: samples meet here"
      : `${net.text("placement", i)}${net.spoilt.has(i) ? ", had the fault before it not been" : ""}`;
    const facts = [
      ["op", net.text("op", i)], ["node", net.name[i] !== net.label[i] ? net.name[i] : null],
      ["shape", net.text("shape", i)], ["placement", net.kind[i] === "end" ? null : state],
      ["sum for", net.sums.get(i) || null], ["pass", net.backward[i] ? "backward" : "forward"],
      ["module", net.text("module", i)], ["line", file], ["", code],
      ["reads", links(net.operands[i])], ["read by", links(net.users[i])],
    ].filter(([, v]) => v && v.length);
    this.foot.prepend(el("aside", { class: "about", "aria-label": "The selected op" },
      el("button", { class: "close", type: "button", "aria-label": "Close", onclick: () => { this.graph.select(-1); this.graph.canvas.focus(); } }, "\u2715"),
      el("h3", {}, net.label[i]), el("dl", {}, facts.map(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]).flat())));
    say(`${net.label[i]}, ${net.text("shape", i)}, ${state}`);
  }
}

// The shape and colour of a placement, small, for the legend.
function sample(kind) {
  const shapes = {
    shard: "M5 1h12a5 5 0 0 1 0 12H5A5 5 0 0 1 5 1z", end: "M7 1h8a6 6 0 0 1 0 12H7A6 6 0 0 1 7 1z", iota: "M5 1h16l-4 12H1z",
    partial: "M5 1h12l4 6-4 6H5L1 7z", sum: "M5 1h12l4 6-4 6H5L1 7z", refused: "M4 1h14l3 3v6l-3 3H4l-3-3V4z",
  };
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 22 14");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", shapes[kind] || "M1 1h20v12H1z");
  const solid = kind === "sum" || kind === "refused";
  path.style.fill = solid ? `var(--${kind === "sum" ? "partial" : kind})` : "none";
  path.style.stroke = `var(--${kind === "sum" ? "partial" : kind})`;
  path.style.strokeWidth = "1.5";
  const letter = document.createElementNS(space, "text");
  for (const [k, v] of Object.entries({ x: 11, y: 10.5, "text-anchor": "middle" })) letter.setAttribute(k, v);
  letter.textContent = KINDS[kind].letter;
  letter.style.cssText = `font: 700 9.5px var(--mono); fill: var(--${solid ? "on" : kind})`;
  svg.append(path, letter);
  return svg;
}

let page = new Page(Math.max(0, DATA.models.findIndex((m) => m.status === "refused")));
const recolour = () => { page.graph?.colours(); page.graph?.resize(); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
window.addEventListener("beforeprint", () => {
  root.classList.add("light");
  for (const box of document.querySelectorAll("details")) box.dataset.was = box.open;
  recolour();
  page.graph?.fit(page.graph.path.length ? page.graph.path : null);
  page.graph?.draw();
});
window.addEventListener("afterprint", () => { root.classList.remove("light"); recolour(); });
requestAnimationFrame(() => { root.dataset.ready = Math.round(performance.now() - started); });
