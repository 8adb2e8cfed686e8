"use strict";
// Draws the heat map and, for the tensor or layer that is clicked, its spectra and numbers. Data: see page.py.
(() => {
  const data = JSON.parse(document.getElementById("inspection").textContent);
  const byId = (id) => document.getElementById(id);
  const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const state = { measure: data.measures[0].name, whose: "mean" };

  function element(tag, attributes = {}, text = "") {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  }

  function drawn(tag, attributes, text = "") {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  }

  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
  const mean = (values) => {
    const present = values.filter(isNumber);
    return present.length ? present.reduce((a, b) => a + b, 0) / present.length : null;
  };
  const measure = () => data.measures.find((each) => each.name === state.measure);

  function text(value, form) {
    if (!isNumber(value)) return "–";
    if (form.endsWith("%")) return (100 * value).toFixed(Number(form[1])) + " %";
    if (form.endsWith("e")) return value === 0 ? "0" : value.toExponential(Number(form[1]));
    if (form.endsWith("f")) return value.toFixed(Number(form[1]));
    return value.toPrecision(Number(form[1]));
  }

  // The value of a row under the chosen measure: of one expert or pair, or the mean over them.
  function valueOf(row) {
    const values = row.measures[state.measure] || [];
    return state.whose === "mean" ? mean(values) : values[Number(state.whose)] ?? null;
  }

  const rowsOfCell = (layer, kind) => data.rows.filter((row) => row.layer === layer && row.kind === kind);
  const cellValue = (rows) => mean(rows.map(valueOf));

  function shade(value, low, high, isLog) {
    const scaled = (x) => (isLog ? Math.log(Math.max(x, 1e-300)) : x);
    const span = scaled(high) - scaled(low);
    const at = span > 0 ? Math.min(1, Math.max(0, (scaled(value) - scaled(low)) / span)) : 0.5;
    const position = at * (STOPS.length - 1);
    const index = Math.min(STOPS.length - 2, Math.floor(position));
    const mixed = STOPS[index].map((from, c) => Math.round(from + (position - index) * (STOPS[index + 1][c] - from)));
    return `rgb(${mixed.join(",")})`;
  }

  function namesOf(kind) {
    if (kind === "expert") return data.experts;
    if (kind === "pair") return data.pairs.map(([i, j]) => `${data.experts[i]} / ${data.experts[j]}`);
    return [];
  }

  function fillChoices() {
    const measures = byId("measure"), whose = byId("whose");
    for (const each of data.measures) measures.append(element("option", { value: each.name }, `${each.title}: ${each.meaning}`));
    const fillWhose = () => {
      const names = namesOf(measure().of);
      whose.replaceChildren(element("option", { value: "mean" }, names.length ? "mean of all" : "all together"));
      names.forEach((name, i) => whose.append(element("option", { value: i }, name)));
      whose.disabled = names.length < 2;
      state.whose = "mean";
    };
    measures.addEventListener("change", () => { state.measure = measures.value; fillWhose(); drawMap(); });
    whose.addEventListener("change", () => { state.whose = whose.value; drawMap(); });
    fillWhose();
  }

  function drawMap() {
    const map = byId("map"), hasOutside = data.rows.some((row) => row.layer === null);
    const columns = [...(hasOutside ? [null] : []), ...data.layers];
    map.style.gridTemplateColumns = `max-content ${hasOutside ? "2.2rem" : ""} repeat(${data.layers.length}, minmax(.6rem, 1fr))`;
    map.style.maxWidth = `${16 + 2.2 * columns.length}rem`;
    map.replaceChildren();
    const { is_log: isLog, form } = measure();
    const values = data.rows.map(valueOf).filter((value) => isNumber(value) && (!isLog || value > 0));
    const low = Math.min(...values), high = Math.max(...values);
    for (const kind of data.kinds) {
      map.append(element("span", { class: "kind", title: kind }, kind));
      for (const layer of columns) map.append(cell(layer, kind, low, high, isLog));
    }
    map.append(element("span", { class: "kind" }, "layer"));
    columns.forEach((layer) => {
      const every = Math.ceil(data.layers.length / 20);
      const shown = layer === null ? "none" : layer % every === 0 ? String(layer) : "";
      const button = element("button", { class: "number", "aria-label": layer === null ? "outside the layers" : `layer ${layer}` }, shown);
      button.addEventListener("click", () => choose(button, data.rows.filter((row) => row.layer === layer)));
      map.append(button);
    });
    byId("low").textContent = values.length ? text(low, form) : "–";
    byId("high").textContent = values.length ? text(high, form) + (isLog ? " (logarithmic)" : "") : "";
    byId("bar").style.background = `linear-gradient(90deg, ${STOPS.map((stop) => `rgb(${stop.join(",")})`).join(",")})`;
  }

  function cell(layer, kind, low, high, isLog) {
    const rows = rowsOfCell(layer, kind);
    if (!rows.length) return element("span");
    const value = cellValue(rows);
    const button = element("button", { class: "cell" });
    button.dataset.tensor = rows[0].tensor;
    if (isNumber(value)) button.style.background = shade(value, low, high, isLog);
    else button.classList.add("empty");
    const label = hoverText(rows, value);
    button.setAttribute("aria-label", label.replaceAll("\n", ", "));
    button.addEventListener("mouseenter", () => showHover(button, label));
    button.addEventListener("focus", () => showHover(button, label));
    for (const event of ["mouseleave", "blur"]) button.addEventListener(event, () => { byId("hover").hidden = true; });
    button.addEventListener("click", () => choose(button, rows));
    button.addEventListener("keydown", (event) => step(event, button));
    return button;
  }

  function hoverText(rows, value) {
    const { title, form, of } = measure(), names = namesOf(of);
    const name = rows.length > 1 ? `${rows[0].tensor} and ${rows.length - 1} more` : rows[0].tensor;
    const single = names.map((each, i) => `${each}: ${text(mean(rows.map((row) => (row.measures[state.measure] || [])[i])), form)}`);
    const problem = rows.find((row) => row.problem);
    return [name, problem ? problem.problem : `${title} ${text(value, form)}`, ...(names.length > 1 && !problem ? single.slice(0, 10) : [])].join("\n");
  }

  function showHover(button, label) {
    const hover = byId("hover"), box = button.getBoundingClientRect();
    hover.textContent = label;
    hover.hidden = false;
    const left = Math.min(box.left, window.innerWidth - hover.offsetWidth - 8);
    const above = box.top - hover.offsetHeight - 6;
    hover.style.left = `${Math.max(4, left)}px`;
    hover.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  }

  function step(event, button) {
    const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [across, down] = moves[event.key], box = button.getBoundingClientRect();
    const target = document.elementFromPoint(box.left + box.width / 2 + across * (box.width + 1), box.top + box.height / 2 + down * (box.height + 1));
    if (target && target.matches("#map button")) target.focus();
  }

  function choose(button, rows) {
    document.querySelectorAll("#map .chosen").forEach((each) => each.classList.remove("chosen"));
    button.classList.add("chosen");
    const detail = byId("detail");
    detail.replaceChildren();
    if (rows.length > 1) {
      const spectra = element("div", { class: "spectra" });
      for (const row of rows.filter((each) => each.spectra)) {
        const part = element("div");
        part.append(element("h3", {}, row.tensor), spectrum(row), expertNames());
        spectra.append(part);
      }
      detail.append(element("p", { class: "faint" }, `${rows.length} tensors; click a cell of the map for the numbers of one.`), spectra);
    } else showRow(detail, rows[0]);
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    detail.scrollIntoView({ block: "nearest", behavior: isStill ? "auto" : "smooth" });
  }

  function showRow(detail, row) {
    detail.append(element("h3", {}, row.tensor));
    detail.append(element("p", { class: "faint" }, `${row.shape.join(" × ")}, ${[...new Set(row.dtypes)].join(" / ")}`));
    if (row.problem) { detail.append(element("p", { class: "warning" }, row.problem)); return; }
    const sides = element("div", { class: "columns" }), pictures = element("div"), numbers = element("div");
    sides.append(...(row.spectra ? [pictures, numbers] : [numbers]));
    detail.append(sides);
    if (row.spectra) pictures.append(spectrum(row), expertNames(), element("p", { class: "faint" },
      "Singular values by their number, both logarithmic. Dashed: the edge under which rounding explains them. Upright: the last one that R-TSVM keeps."));
    for (const kind of ["expert", "pair", "tensor"]) {
      const measures = data.measures.filter((each) => each.of === kind && (row.measures[each.name] || []).some(isNumber));
      const names = kind === "tensor" ? ["all together"] : namesOf(kind);
      if (measures.length && names.length) numbers.append(table(["", ...names], measures.map((each) =>
        [each.title, each.meaning, ...names.map((_, i) => text(row.measures[each.name][i], each.form))])));
    }
    if (row.record) numbers.append(element("h3", {}, "What the merge did"), ...recorded(row));
  }

  function recorded(row) {
    const parts = [];
    const perExpert = data.record.expert.filter(([name]) => Array.isArray(row.record[name]));
    if (perExpert.length) parts.push(table(["", ...data.experts], perExpert.map(([name, title, meaning, form]) =>
      [title, meaning, ...row.record[name].map((value) => (typeof value === "string" ? value : text(value, form)))])));
    const single = data.record.tensor.filter(([name]) => isNumber(row.record[name]));
    if (single.length) parts.push(table(["", "all together"], single.map(([name, title, meaning, form]) =>
      [title, meaning, text(row.record[name], form)])));
    return parts;
  }

  // Every row: name, its explanation (shown on hover), values.
  function table(headers, rows) {
    const scroll = element("div", { class: "scroll", tabindex: "0" }), made = element("table");
    const head = element("tr");
    headers.forEach((header, i) => head.append(element("th", i ? {} : { class: "name" }, header)));
    made.append(head);
    for (const [name, meaning, ...values] of rows) {
      const line = element("tr");
      line.append(element("td", { class: "name", title: meaning }, name), ...values.map((value) => element("td", {}, value)));
      made.append(line);
    }
    scroll.append(made);
    return scroll;
  }

  function spectrum(row) {
    const width = 400, height = 250, left = 58, right = 10, top = 12, bottom = 34;
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Singular values of the updates of ${row.tensor}` });
    const every = row.spectra.flatMap((each) => [...each.values, each.edge]).filter((value) => value > 0);
    const count = Math.max(2, ...row.spectra.map((each) => each.count));
    if (!every.length) { svg.append(drawn("text", { x: left, y: height / 2 }, "no update")); return svg; }
    const low = Math.log10(Math.min(...every)), high = Math.max(low + 0.1, Math.log10(Math.max(...every)));
    const x = (number) => left + (width - left - right) * Math.log(number) / Math.log(count);
    const y = (value) => top + (height - top - bottom) * (high - Math.log10(value)) / (high - low);
    axes(svg, { low, high, count, x, y, left, right, top, bottom, width, height });
    row.spectra.forEach((each, i) => {
      const colour = `s${i % 8}`, places = data.places[each.count] || [];
      const points = each.values.map((value, n) => [places[n] + 1, value]).filter(([, value]) => value > 0);
      const line = points.map(([number, value], n) => `${n ? "L" : "M"}${x(number).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      svg.append(drawn("path", { class: `${colour} open`, d: line, "stroke-width": 1.8 }));
      if (each.edge > 0) svg.append(drawn("path", { class: `${colour} edge open`, d: `M${left} ${y(each.edge)}H${width - right}` }));
      if (each.rank > 0) svg.append(drawn("path", { class: `${colour} cut open`, d: `M${x(each.rank)} ${height - bottom}v${-14 - 5 * i}` }));
    });
    return svg;
  }

  function expertNames() {
    const names = element("p", { class: "experts" });
    data.experts.forEach((name, i) => {
      const sample = drawn("svg", { viewBox: "0 0 20 10", "aria-hidden": "true" }), entry = element("span");
      sample.append(drawn("path", { class: `s${i % 8} open`, d: "M0 5H20", "stroke-width": 3 }));
      entry.append(sample, name);
      names.append(entry);
    });
    return names;
  }

  function axes(svg, { low, high, count, x, y, left, right, top, bottom, width, height }) {
    svg.append(drawn("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }));
    for (let number = 1; number <= count; number *= number < 10 ? 10 : 4) {
      svg.append(drawn("text", { x: x(number), y: height - bottom + 16, "text-anchor": "middle", class: "faint" }, String(number)));
    }
    const steps = 4;
    for (let i = 0; i <= steps; i++) {
      const value = 10 ** (low + (high - low) * i / steps);
      svg.append(drawn("path", { class: "grid", d: `M${left} ${y(value)}H${width - right}` }));
      svg.append(drawn("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end", class: "faint" }, value < 0.01 ? value.toExponential(1) : value.toPrecision(2)));
    }
  }

  fillChoices();
  drawMap();
  window.addEventListener("scroll", () => { byId("hover").hidden = true; }, { passive: true });
})();
