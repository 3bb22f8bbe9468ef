// Source files with their faults beneath the lines, as rustc writes them.
const WORDS = new Set(("False None True and as assert async await break class continue def del elif else except "
  + "finally for from global if import in is lambda nonlocal not or pass raise return try while with yield self").split(" "));
const TOKEN = /("""|''')[\s\S]*?(?:\1|$)|[rbfuRBFU]{0,2}"(?:\\.|[^"\\\n])*"|[rbfuRBFU]{0,2}'(?:\\.|[^'\\\n])*'|#[^\n]*|[A-Za-z_]\w*/g;
const AROUND = 4; // lines about a fault

// For each line of a file its stretches: [from, to, class].
function coloured(lines) {
  const text = lines.join("\n");
  const spans = lines.map(() => []);
  const starts = [0];
  for (const line of lines) starts.push(starts[starts.length - 1] + line.length + 1);
  let row = 0;
  for (const m of text.matchAll(TOKEN)) {
    const kind = m[0][0] === "#" ? "c" : /["']/.test(m[0].slice(0, 3)) ? "s" : WORDS.has(m[0]) ? "k" : null;
    if (!kind) continue;
    while (starts[row + 1] <= m.index) row++;
    for (let r = row, end = m.index + m[0].length; r < lines.length && starts[r] < end; r++) {
      spans[r].push([Math.max(m.index - starts[r], 0), Math.min(end - starts[r], lines[r].length), kind]);
    }
  }
  return spans;
}

function painted(line, spans, marks) {
  const cuts = new Set([0, line.length]);
  for (const [from, to] of [...spans, ...marks]) cuts.add(clamp(from, 0, line.length)).add(clamp(to, 0, line.length));
  const at = [...cuts].sort((a, b) => a - b);
  const inside = (list, x) => list.find(([from, to]) => from <= x && x < to);
  return at.slice(1).map((to, i) => {
    const piece = line.slice(at[i], to);
    const kind = inside(spans, at[i]);
    const shown = kind ? el("span", { class: kind[2] }, piece) : document.createTextNode(piece);
    return inside(marks, at[i]) ? el("u", {}, shown) : shown;
  });
}

// An expression's end, where the trace of a frame marks all of the line behind its beginning.
function closed(line, from, to) {
  let depth = 0;
  for (const m of line.slice(0, to).matchAll(/"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[[\](){}#]/g)) {
    if (m.index < from) continue;
    if (m[0] === "#") return Math.max(line.slice(0, m.index).trimEnd().length, from);
    if ("([{".includes(m[0])) depth++;
    else if (")]}".includes(m[0]) && --depth < 0) return Math.max(m.index, from + 1);
  }
  return to;
}

class Source {
  // hooks: line(ops, row), path(finding number), step(finding number, step number)
  constructor(model, net, hooks) {
    Object.assign(this, { model, net, hooks });
  }

  faulty() {
    const files = [...new Set(this.model.findings.map((f) => f.file))];
    return files.map((file) => this.file(file, this.model.findings.filter((f) => f.file === file)));
  }

  others() {
    const known = new Set(this.model.findings.map((f) => f.file));
    const used = new Map();
    for (const file of this.net ? this.net.file : []) if (file >= 0 && !known.has(file)) used.set(file, (used.get(file) || 0) + 1);
    return [...used].sort((a, b) => b[1] - a[1]).map(([file, ops]) => {
      const at = DATA.sources[file];
      const box = el("details", { class: "file card" },
        el("summary", {}, el("span", {}, at.path), el("span", {}, many(ops, "op"))));
      box.addEventListener("toggle", () => {
        if (!box.open || box.children.length > 1) return;
        box.append(at.lines.length ? this.lines(file, [], [[this.first(file), at.lines.length]])
          : el("p", { class: "trouble" }, "The file is left out of this page, which would grow too large."));
      });
      return box;
    });
  }

  // Where the ops of a file begin, with room for the class around them.
  first(file) {
    const lines = this.net.where((i) => this.net.file[i] === file).map((i) => this.net.line[i]);
    return Math.max(1, Math.min(...lines) - 12);
  }

  file(file, findings) {
    const at = DATA.sources[file];
    const lines = at.lines.length ? at.lines : null;
    const ranges = [];
    for (const f of findings.filter((g) => lines && g.line <= lines.length).sort((a, b) => a.line - b.line)) {
      const [from, to] = [Math.max(1, f.line - AROUND), Math.min(lines.length, f.line + AROUND)];
      const last = ranges[ranges.length - 1];
      if (last && from <= last[1] + 3) last[1] = Math.max(last[1], to);
      else ranges.push([from, to]);
    }
    const lost = findings.filter((f) => !lines || f.line > lines.length);
    const shown = [lines ? this.lines(file, findings, ranges) : null, lost.length ? this.bare(lost) : null];
    const where = findings.length === 1 ? `line ${findings[0].line}` : many(findings.length, "fault");
    return el("article", { class: "file card" }, el("header", {}, el("span", {}, at.path), el("span", {}, where)), ...shown);
  }

  // Faults in files that cannot be read any more.
  bare(findings) {
    return el("div", { class: "lines" }, findings.map((f) => [
      f.source ? this.row(f.line, f.source, [], [f], null) : null, this.note(f)]).flat());
  }

  lines(file, findings, ranges) {
    const { lines } = DATA.sources[file];
    const spans = coloured(lines);
    const rows = el("div", { class: "rows" });
    const ops = new Map();
    for (let i = 0; this.net && i < this.net.size; i++) {
      if (this.net.file[i] === file) ops.set(this.net.line[i], [...(ops.get(this.net.line[i]) || []), i]);
    }
    const write = (from, to) => {
      const made = [];
      for (let n = from; n <= to; n++) {
        const here = findings.filter((f) => f.line === n);
        made.push(this.row(n, lines[n - 1], spans[n - 1], here, ops.get(n)));
        for (const f of here) made.push(this.note(f));
      }
      return made;
    };
    const gap = (from, to) => {
      if (from > to) return;
      const bar = el("button", { class: "gap", type: "button", onclick: () => bar.replaceWith(...write(from, to)) },
        `\u22ef ${many(to - from + 1, "line")}`);
      rows.append(bar);
    };
    let next = 1;
    for (const [from, to] of ranges) {
      gap(next, from - 1);
      rows.append(...write(from, to));
      next = to + 1;
    }
    gap(next, lines.length);
    return el("div", { class: "lines", tabindex: 0, role: "group", "aria-label": DATA.sources[file].path }, rows);
  }

  row(n, line, spans, findings, ops) {
    const number = ops
      ? el("button", { class: "n", type: "button", title: `${many(ops.length, "op")}: show in the graph`,
        onclick: () => this.hooks.line(ops, row) }, String(n))
      : el("span", { class: "n" }, String(n));
    const marks = findings.map((f) => [f.column - 1, closed(line, f.column - 1, f.end - 1)]);
    const row = el("div", { class: findings.length ? "row faulty" : "row" }, number,
      el("span", {}, painted(line, spans, marks)));
    return row;
  }

  note(f) {
    const number = this.model.findings.indexOf(f);
    const places = f.modules.filter(Boolean);
    const where = [
      places.length ? `in ${places.join(", ")}` : null,
      f.shapes.length ? `given ${f.shapes.join(" and ")}` : null,
    ].filter(Boolean).join("; ");
    const show = this.net && this.net.routes[number].some((i) => i >= 0)
      ? el("button", { class: "show", type: "button", "aria-pressed": "false",
        "data-finding": number, onclick: () => this.hooks.path(number) }, "Show this path in the graph") : null;
    return el("div", { class: "note", id: `fault-${number}` },
      el("p", {}, el("span", { class: "code" }, `${f.code} ${f.name}`), el("span", { class: "message" }, f.message)),
      f.help ? el("p", { class: "help" }, f.help) : null,
      where ? el("p", { class: "where" }, where) : null,
      f.route.length ? this.strip(f, number) : null, show,
      f.what ? el("details", {}, el("summary", {}, `What ${f.code} means`),
        el("p", {}, `It flags that ${f.what}. ${f.why}`),
        f.bad ? el("pre", { "data-as": "instead of" }, f.bad) : null,
        f.good ? el("pre", { "data-as": "write" }, f.good) : null) : null);
  }

  // The way from the fault to what it spoils, the middle of a long one folded.
  strip(f, number) {
    const item = (i) => {
      const last = i === f.route.length - 1 && i > 0;
      return el("li", { class: i === 0 ? "first" : last ? "last" : "" },
        el("button", { type: "button", onclick: () => this.hooks.step(number, i) }, f.route[i]));
    };
    const list = el("ol", { class: "strip", "aria-label": "From the fault to what it spoils" });
    const all = f.route.map((_, i) => i);
    if (all.length <= 10) list.append(...all.map(item));
    else {
      const hidden = all.slice(5, -3);
      const more = el("li", { class: "more" }, el("button", { type: "button",
        onclick: () => more.replaceWith(...hidden.map(item)) }, `${hidden.length} more`));
      list.append(...all.slice(0, 5).map(item), more, ...all.slice(-3).map(item));
    }
    return list;
  }
}
