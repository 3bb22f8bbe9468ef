// The tree of submodules: how many ops each has, how they are placed, and whether one is at fault.
const BAR = ["refused", "shard", "sum", "partial", "iota", "replicate"];

class Tree {
  constructor(model, net, onLight) {
    this.onLight = onLight;
    this.net = net;
    this.items = model.modules.map((m) => ({ ...m, ops: 0, faults: 0, parts: {}, children: [], open: false }));
    const byPath = new Map(this.items.map((m) => [m.path, m]));
    for (const m of this.items) {
      m.depth = m.path ? m.path.split(".").length : 0;
      if (m.path) (byPath.get(m.path.slice(0, Math.max(m.path.lastIndexOf("."), 0))) || this.items[0]).children.push(m);
    }
    const up = (path, act) => {
      for (let p = path; ; p = p.slice(0, Math.max(p.lastIndexOf("."), 0))) {
        if (byPath.has(p)) act(byPath.get(p));
        if (!p) return;
      }
    };
    for (let i = 0; net && i < net.size; i++) {
      if (net.kind[i] === "end") continue;
      up(net.text("module", i), (m) => { m.ops++; m.parts[net.look(i)] = (m.parts[net.look(i)] || 0) + 1; });
    }
    for (const f of model.findings) {
      const paths = f.modules.length ? f.modules : [""];
      const above = new Set();
      for (const path of paths) up(path, (m) => above.add(m));
      for (const m of above) { m.faults++; m.open = true; }
    }
    this.items[0].open = true;
    if (this.items.length < 14) for (const m of this.items) m.open = true;
    for (const m of this.items[0].children) if (this.items[0].children.length < 3) m.open = true;
    this.pinned = null;
    this.list = el("ul", { class: "tree card", role: "tree", "aria-label": "Submodules",
      onmouseleave: () => this.onLight(this.pinned) });
    this.rows = this.items.map((m) => this.row(m));
    this.items.forEach((m, i) => { m.row = this.rows[i]; });
    this.list.append(...this.rows);
    this.list.addEventListener("keydown", (e) => this.key(e));
    this.show();
  }

  row(m) {
    const mark = m.faults ? ["bad", `\u2715 ${many(m.faults, "fault")}`]
      : m.ops ? ["good", "\u2713"] : ["idle", "\u2013"];
    const bar = el("span", { class: "bar", "aria-hidden": "true" });
    for (const kind of BAR) {
      const part = el("i", { title: `${m.parts[kind] || 0} ${KINDS[kind].word}` });
      part.style.flexGrow = m.parts[kind] || 0;
      part.style.background = `var(--${kind === "sum" ? "partial" : kind})`;
      if (m.parts[kind]) bar.append(part);
    }
    const name = el("span", { class: "name", title: m.path || "the model" },
      el("span", { class: "twist", "aria-hidden": "true" }),
      m.path ? m.path.slice(m.path.lastIndexOf(".") + 1) : "model",
      el("span", { class: "class" }, m.class));
    name.style.paddingLeft = `${8 + m.depth * 15}px`;
    const row = el("li", {
      role: "treeitem", tabindex: m.path ? -1 : 0, "aria-level": m.depth + 1,
      "aria-label": `${m.path || "model"} ${m.class}, ${many(m.ops, "op")}, ${m.faults ? many(m.faults, "fault") : "no fault"}`,
      onmouseenter: () => this.onLight(m.path),
      onclick: (e) => (e.target.classList.contains("twist") ? this.toggle(m) : this.pin(m)),
      ondblclick: () => this.toggle(m),
    }, name, el("span", { class: mark[0] }, mark[1]), bar,
      el("span", { class: "ops" }, m.ops ? many(m.ops, "op") : ""));
    row.dataset.path = m.path;
    row.dataset.faults = m.faults;
    return row;
  }

  show() {
    const walk = (m, seen) => {
      m.row.hidden = !seen;
      m.row.style.display = seen ? "" : "none";
      m.row.classList.toggle("on", this.pinned === m.path);
      if (m.children.length) {
        m.row.setAttribute("aria-expanded", m.open);
        m.row.querySelector(".twist").textContent = m.open ? "\u25be" : "\u25b8";
      }
      for (const child of m.children) walk(child, seen && m.open);
    };
    walk(this.items[0], true);
  }

  toggle(m) {
    m.open = !m.open;
    this.show();
  }

  pin(m) {
    this.pinned = this.pinned === m.path ? null : m.path;
    this.onLight(this.pinned, true);
    this.show();
  }

  key(e) {
    const seen = this.items.filter((m) => !m.row.hidden);
    const at = seen.findIndex((m) => m.row === document.activeElement);
    if (at < 0) return;
    const here = seen[at];
    const go = (m) => {
      if (!m) return;
      for (const row of this.rows) row.tabIndex = row === m.row ? 0 : -1;
      m.row.focus();
    };
    if (e.key === "ArrowDown") go(seen[at + 1]);
    else if (e.key === "ArrowUp") go(seen[at - 1]);
    else if (e.key === "ArrowRight") { if (here.children.length && !here.open) this.toggle(here); else go(here.children[0]); }
    else if (e.key === "ArrowLeft") { if (here.children.length && here.open) this.toggle(here); else go(this.items.find((m) => m.children.includes(here))); }
    else if (e.key === "Home") go(seen[0]);
    else if (e.key === "End") go(seen[seen.length - 1]);
    else if (e.key === "Enter" || e.key === " ") this.pin(here);
    else return;
    e.preventDefault();
  }
}
