// The cells of a case as the page knows them, their classes and keys, and the order in which they stand on the wall.

const RESERVED = new Set(["z", "x"]);

// One key a class: a letter of its code if that is free, then of its name, then any letter or digit.
export function giveKeys(classes) {
  const keys = new Map();
  const taken = new Set(RESERVED);
  for (const { code, name } of classes) {
    const wanted = [...code.toLowerCase(), ...name.toLowerCase(), ..."abcdefghijklmnopqrstuvwxyz1234567890"];
    const key = wanted.find((k) => /[a-z0-9]/.test(k) && !taken.has(k));
    taken.add(key);
    keys.set(code, key);
  }
  return keys;
}

export class CellBook {
  // `classes`: all classes in clinical order; `codes`: those of the case's model.
  constructor(classes, codes) {
    this.byNumber = new Map();
    this.classes = new Map(classes.map((c) => [c.code, c]));
    this.known = classes.filter((c) => codes.includes(c.code));
    this.others = classes.filter((c) => !codes.includes(c.code));
    this.codes = codes;
    this.keys = giveKeys([...this.known, ...this.others]);
    this.codeOfKey = new Map([...this.keys].map(([code, key]) => [key, code]));
    this.version = 0;
  }

  // Take in cells as the service gives them; whether any is new or has only now been answered for.
  take(cells) {
    let moved = false;
    for (const cell of cells) {
      const before = this.byNumber.get(cell.number);
      if (before && before.changed > cell.changed) continue;
      moved ||= !before || before.status !== cell.status;
      this.byNumber.set(cell.number, cell);
    }
    return moved;
  }

  colour(code) {
    return this.classes.get(code)?.colour ?? "transparent";
  }

  name(code) {
    return this.classes.get(code)?.name ?? code;
  }

  // Which group a cell stands in: what needs a person first comes first.
  group(cell) {
    if (cell.excluded) return "excluded";
    if (cell.label !== null) return cell.label;
    if (cell.status === "pending") return "pending";
    if (cell.status === "failed") return "failed";
    return cell.ood ? "ood" : cell.code;
  }

  // Groups in order, each with its cells, the least certain first.
  groups({ only = "all", unseen = false } = {}) {
    const order = ["ood", "failed", ...this.classes.keys(), "pending", "excluded"];
    const members = new Map(order.map((g) => [g, []]));
    for (const cell of this.byNumber.values()) {
      const group = this.group(cell);
      if (only !== "all" && only !== group) continue;
      if (unseen && (cell.label !== null || cell.excluded)) continue;
      members.get(group).push(cell.number);
    }
    const unsure = (n) => this.byNumber.get(n).uncertainty ?? 2;
    return [...members]
      .filter(([, numbers]) => numbers.length)
      .map(([group, numbers]) => ({ group, numbers: numbers.sort((a, b) => unsure(b) - unsure(a) || a - b) }));
  }
}
