"use strict";
// Tables that sort and filter, and the plot of runs. Written for this page: a library for plots would be larger than it.
(() => {
  const svgNames = "http://www.w3.org/2000/svg";

  // --- tables: sort by a heading, filter by words
  const key = (cell) => {
    const text = (cell ? cell.textContent : "").trim();
    const number = parseFloat(text.replace(/[−–](?=\d)/g, "-").replace(/^[+≥≤ ]+/, "").replace(/(\d),(?=\d{3})/g, "$1"));
    return { text, number, isNumber: /^[+≥≤ ]*[-−–]?\d/.test(text) };
  };
  const compare = (a, b) => {
    if (a.isNumber !== b.isNumber) return a.isNumber ? -1 : 1; // what is absent comes last
    return a.isNumber ? a.number - b.number : a.text.localeCompare(b.text, "en");
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.textContent = "";
      heading.append(button);
      button.addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => ({ row, key: key(row.cells[column]) }));
        rows.sort((a, b) => (a.key.isNumber && b.key.isNumber && down ? -1 : 1) * compare(a.key, b.key));
        if (down && !rows.some((one) => one.key.isNumber)) rows.reverse();
        body.append(...rows.map((one) => one.row));
      });
    });
  }
  for (const input of document.querySelectorAll("input[data-for]")) {
    const block = document.getElementById(input.dataset.for);
    const rows = [...block.querySelector("tbody").rows];
    const said = block.querySelector("output");
    const texts = rows.map((row) => row.textContent.toLowerCase());
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, i) => {
        row.hidden = !words.every((word) => texts[i].includes(word));
        shown += row.hidden ? 0 : 1;
      });
      said.textContent = words.length ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
    });
  }
  // A link to a row that a filter hides shows it again
  const reveal = () => {
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!row || !row.hidden) return;
    const input = row.closest(".grid").querySelector("input");
    input.value = "";
    input.dispatchEvent(new Event("input"));
    row.scrollIntoView();
  };
  window.addEventListener("hashchange", reveal);

  // --- the plot
  const area = document.getElementById("plot-area");
  if (!area) return;
  const data = JSON.parse(document.getElementById("plot-data").textContent);
  const choice = (name) => document.getElementById(`plot-${name}`);
  const tip = document.getElementById("plot-tip");
  const frame = { left: 64, right: 700, top: 16, bottom: 368 };
  const words = Object.fromEntries([...choice("x").options].map((option) => [option.value, option.textContent]));

  const make = (name, attributes, parent, text) => {
    const node = document.createElementNS(svgNames, name);
    for (const [attribute, value] of Object.entries(attributes)) node.setAttribute(attribute, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  };
  const ticks = (low, high) => {
    const rough = (high - low) / 6;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((one) => one * power >= rough) * power;
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(10)));
    return found;
  };
  const range = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = (high - low || Math.abs(high) || 1) * 0.08;
    return [low - pad, high + pad];
  };
  const described = (point) => {
    const spread = point.spread === null ? "" : ` ± ${point.spread.toFixed(1)}`;
    const interval = point.low === null ? "" : ` [${point.low.toFixed(1)}, ${point.high.toFixed(1)}]`;
    const share = point.retained === null ? "" : `, ${point.retained.toFixed(1)} % of dense${interval}`;
    return [
      `score ${point.score.toFixed(1)}${spread}${share}`,
      `training ${point.seconds.toFixed(0)} s; ${point.nonzero.toFixed(1)} million non-zero parameters` +
        `${point.size === null ? "" : `, ${point.size.toFixed(1)} MiB`}` +
        `${point.bits === null ? "" : `, ${point.bits} bits per target weight`}; ` +
        `seed${/\D/.test(point.seeds) ? "s" : ""} ${point.seeds}`,
    ];
  };
  const tell = (point) => {
    tip.textContent = "";
    const name = document.createElement("strong");
    name.textContent = point.name;
    const lines = described(point).map((line) => {
      const node = document.createElement("div");
      node.textContent = line;
      return node;
    });
    const command = document.createElement("code");
    command.textContent = point.command;
    tip.append(name, ...lines, command);
  };
  const draw = () => {
    const [x, y, task] = ["x", "y", "task"].map((name) => choice(name).value);
    const points = data.filter((point) => point.task === task && point[x] !== null && point[y] !== null);
    area.textContent = "";
    if (!points.length) {
      make("text", { x: 360, y: 200, "text-anchor": "middle" }, area, "No run has both measures.");
      return;
    }
    const bars = y === "retained" || x === "retained";
    const ends = (measure) =>
      points.flatMap((point) => [point[measure], ...(measure === "retained" && point.low !== null ? [point.low, point.high] : [])]);
    const [xs, ys] = [range(ends(x)), range(ends(y))];
    const px = (value) => frame.left + ((value - xs[0]) / (xs[1] - xs[0])) * (frame.right - frame.left);
    const py = (value) => frame.bottom - ((value - ys[0]) / (ys[1] - ys[0])) * (frame.bottom - frame.top);
    for (const value of ticks(...xs)) {
      make("line", { class: "faint", x1: px(value), x2: px(value), y1: frame.top, y2: frame.bottom }, area);
      make("text", { x: px(value), y: frame.bottom + 16, "text-anchor": "middle" }, area, value);
    }
    for (const value of ticks(...ys)) {
      make("line", { class: "faint", x1: frame.left, x2: frame.right, y1: py(value), y2: py(value) }, area);
      make("text", { x: frame.left - 6, y: py(value) + 4, "text-anchor": "end" }, area, value);
    }
    make("text", { x: (frame.left + frame.right) / 2, y: frame.bottom + 38, "text-anchor": "middle" }, area, words[x]);
    make("text", { transform: `translate(16 ${(frame.top + frame.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, area, words[y]);
    const labels = [];
    // runs after their variants, so that they lie on top
    for (const point of [...points].sort((a, b) => Number(b.variant) - Number(a.variant))) {
      const [cx, cy] = [px(point[x]), py(point[y])];
      const mark = make("a", { class: "mark", href: `#${point.anchor}`, "aria-label": `${point.name}: ${described(point)[0]}` }, area);
      if (bars && point.low !== null && x !== y) {
        const bar = y === "retained"
          ? { x1: cx, x2: cx, y1: py(point.low), y2: py(point.high) }
          : { x1: px(point.low), x2: px(point.high), y1: cy, y2: cy };
        make("line", { ...bar, stroke: point.color, "stroke-opacity": point.variant ? 0.25 : 0.6 }, mark);
      }
      const fill = point.variant ? "#fff" : point.color;
      make("circle", { cx, cy, r: point.variant ? 4.5 : 6.5, fill, stroke: point.variant ? point.color : "#fff", "stroke-width": 1.5 }, mark);
      make("title", {}, mark, `${point.name}\n${point.command}`);
      mark.addEventListener("pointerenter", () => tell(point));
      mark.addEventListener("focus", () => tell(point));
      if (!point.variant) labels.push({ point, cx, cy });
    }
    // a label goes where it meets no other one and, if possible, no mark; the tip has every name
    const marks = points.map((point) => [px(point[x]) - 6, py(point[y]) - 6, px(point[x]) + 6, py(point[y]) + 6]);
    const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
    const taken = [];
    for (const { point, cx, cy } of labels.reverse()) {
      const width = point.name.length * 6.6;
      const places = [[cx + 10, cy], [cx - 10 - width, cy], [cx - width / 2, cy - 15], [cx - width / 2, cy + 15]]
        .map(([left, middle]) => [left, middle - 7, left + width, middle + 7])
        .filter((box) => box[0] > frame.left && box[2] < frame.right + 16 && !taken.some((other) => meets(box, other)));
      const box = places.find((one) => !marks.some((mark) => meets(one, mark))) || places[0];
      if (!box) continue;
      taken.push(box);
      make("text", { x: box[0], y: box[1] + 11, "pointer-events": "none" }, area, point.name);
    }
  };
  for (const name of ["x", "y", "task"]) choice(name).addEventListener("change", draw);
  draw();
})();
