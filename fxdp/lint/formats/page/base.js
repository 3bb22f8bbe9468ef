// Data, errors, elements. Text from models and files is only ever set as text.
const root = document.documentElement;
const started = performance.now();
const trouble = (text) => { root.dataset.errors = `${root.dataset.errors || ""}${text}; `; };
window.addEventListener("error", (e) => trouble(`${e.message} (${e.lineno}:${e.colno})`));
document.addEventListener("securitypolicyviolation", (e) => trouble(`refused ${e.violatedDirective}`));
const DATA = JSON.parse(document.getElementById("data").textContent);

// What the word of a placement means, and the letter that stands for it beside the colour.
const KINDS = {
  refused: { letter: "\u2715", word: "refused", means: "where samples meet" },
  sum: { letter: "\u03a3", word: "sum over samples", means: "Shard becomes Partial here" },
  shard: { letter: "S", word: "Shard", means: "each sample has its own slice" },
  partial: { letter: "P", word: "Partial", means: "a sum of one value for each sample" },
  replicate: { letter: "R", word: "Replicate", means: "does not depend on the batch" },
  iota: { letter: "I", word: "Iota", means: "counts the samples" },
  none: { letter: "\u00b7", word: "not placed", means: "holds no tensor" },
  end: { letter: "\u2192", word: "output", means: "a gradient or result that leaves the graph" },
};

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  for (const child of children.flat()) if (child != null) made.append(child);
  return made;
}

const many = (n, one, more = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;
const say = (text) => { document.getElementById("spoken").textContent = text; };
const clamp = (v, low, high) => Math.max(low, Math.min(high, v));

// One model's graph, with what is looked up often.
class Net {
  constructor(columns) {
    Object.assign(this, columns);
    this.size = this.name.length;
    this.spoilt = new Set(columns.spoilt);
    this.sums = new Map(Object.entries(columns.sum).map(([i, p]) => [Number(i), p]));
    this.operands = Array.from({ length: this.size }, () => []);
    this.users = Array.from({ length: this.size }, () => []);
    for (let i = 0; i < this.edges.length; i += 2) {
      this.users[this.edges[i]].push(this.edges[i + 1]);
      this.operands[this.edges[i + 1]].push(this.edges[i]);
    }
  }
  look(i) { return this.kind[i] !== "refused" && this.sums.has(i) ? "sum" : this.kind[i]; }
  text(column, i) { return this.texts[this[column][i]]; }
  where(test) {
    const found = [];
    for (let i = 0; i < this.size; i++) if (test(i)) found.push(i);
    return found;
  }
  within(path) {
    const inside = this.texts.map((t) => !path || t === path || t.startsWith(`${path}.`));
    return this.where((i) => inside[this.module[i]]);
  }
  matching(words) {
    const wanted = words.toLowerCase();
    const hit = this.texts.map((t) => t.toLowerCase().includes(wanted));
    return this.where((i) => this.label[i].toLowerCase().includes(wanted)
      || this.name[i].toLowerCase().includes(wanted) || hit[this.op[i]]
      || hit[this.placement[i]] || hit[this.shape[i]] || hit[this.module[i]]);
  }
}
