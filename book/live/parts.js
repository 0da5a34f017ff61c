/**
 * What the explorables share: a state that Python and links can set, plots with handles for mouse, finger and keyboard,
 * controls, numbers, and a sentence that says the state.
 */

import { drag } from "d3-drag";
import { scaleLinear } from "d3-scale";
import { pointer, select } from "d3-selection";
import { line as d3Line, symbol, symbolCircle, symbolDiamond, symbolSquare, symbolTimes } from "d3-shape";

/**
 * The part of anywidget's model that is used here.
 * @typedef {{get: (key: string) => any, set: (key: string, value: any) => void, save_changes: () => void,
 *            on: (event: string, done: () => void) => void}} Model
 * @typedef {Record<string, any>} State
 * @typedef {{render: (context: {model: Model, el: HTMLElement}) => void}} Explorable
 * @typedef {{id: string, x: number, y: number, label: string, colour: string, shape?: keyof typeof SHAPES,
 *            size?: number, hollow?: boolean, move?: (x: number, y: number) => void, press?: () => void,
 *            pressed?: boolean, title?: string}} Point
 */

const SHAPES = { circle: symbolCircle, cross: symbolTimes, diamond: symbolDiamond, square: symbolSquare };

/** The book's colours (see caml_core.pictures.figures): legible on a light page and a dark one. */
export const COLOURS = {
  landbird: "var(--deep)",
  waterbird: "#56B4E9",
  majority: "var(--majority)",
  minority: "#D55E00",
  append: "var(--grey)",
  upweight: "#E69F00",
  mldg: "#56B4E9",
  caml: "var(--deep)",
  exact: "#CC79A7",
  good: "#009E73",
  ink: "var(--ink)",
  grey: "var(--grey)",
};

const STYLE = `
.explorable-body {
  --ink: var(--pst-color-text-base, var(--jp-ui-font-color1, #3b4048));
  --muted: var(--pst-color-text-muted, var(--jp-ui-font-color1, #5a6068));
  --line: var(--pst-color-border, var(--jp-border-color1, #c9cdd2));
  --surface: var(--pst-color-surface, var(--jp-layout-color2, #f3f4f5));
  --accent: var(--pst-color-primary, var(--jp-brand-color1, #0a7d91));
  --deep: #0072B2; --majority: #6b86a1; --grey: #7a7a7a;
  color: var(--ink); font-size: 0.95rem; line-height: 1.5; margin: 0.25rem 0 1rem;
  container-type: inline-size;
}
:is(html[data-theme="dark"], body[data-jp-theme-light="false"]) .explorable-body {
  --deep: #1a7fc4; --majority: #8fa9c4; --grey: #a0a0a0;
}
.explorable-body p { margin: 0 0 0.5rem; max-width: 46rem; }
.explorable-body .plots { display: grid; gap: 0.5rem 1rem; grid-template-columns: minmax(0, 1fr); }
@container (min-width: 34rem) {
  .explorable-body .plots:has(.wide) { grid-template-columns: minmax(0, 1.6fr) minmax(0, 1fr); }
  .explorable-body .plots:not(:has(.wide)):has(.plot + .plot) { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .explorable-body .plot.wide { grid-row: span 2; }
  .explorable-body .plot.whole { grid-column: 1 / -1; }
}
.explorable-body svg { display: block; width: 100%; overflow: hidden; user-select: none; -webkit-user-select: none; }
.explorable-body svg text { fill: var(--ink); font-size: 12px; font-family: inherit; }
.explorable-body svg text.halo { paint-order: stroke; stroke: var(--pst-color-background, #fff); stroke-width: 3px; }
.explorable-body .axis line { stroke: var(--line); stroke-opacity: 0.7; }
.explorable-body [tabindex] { outline: none; cursor: pointer; }
.explorable-body [data-move] { cursor: move; touch-action: none; }
.explorable-body [tabindex] .hit { fill: transparent; stroke: transparent; }
.explorable-body [tabindex]:focus-visible .hit { stroke: var(--accent); stroke-width: 2.5px; }
.explorable-body .controls { display: flex; flex-wrap: wrap; gap: 0.4rem 1.1rem; align-items: end; margin: 0.6rem 0; }
.explorable-body label { display: inline-flex; flex-direction: column; font-size: 0.9em; margin: 0; }
.explorable-body fieldset.controls { border: 0; border-top: 1px solid var(--line); margin: 0; padding: 0.4rem 0; }
.explorable-body fieldset.controls legend { float: none; width: 100%; font-size: 0.9em; font-weight: 600; margin: 0; }
.explorable-body label.check { flex-direction: row; gap: 0.4rem; align-items: center; min-height: 2rem; }
.explorable-body label output { font-variant-numeric: tabular-nums; font-weight: 600; }
.explorable-body input[type="range"] { width: 9.5rem; height: 1.8rem; margin: 0; accent-color: var(--accent); }
.explorable-body input[type="checkbox"] { width: 1.1rem; height: 1.1rem; accent-color: var(--accent); }
.explorable-body :is(button, select) {
  font: inherit; font-size: 0.9em; min-height: 2rem; padding: 0.1rem 0.75rem; border-radius: 0.3rem; cursor: pointer;
  color: var(--ink); background: var(--surface); border: 1px solid var(--grey);
}
.explorable-body button:disabled { opacity: 0.5; cursor: default; }
.explorable-body :is(button, select, input, a, summary):focus-visible { outline: 2.5px solid var(--accent); }
.explorable-body a.link { font-size: 0.9em; min-height: 2rem; line-height: 2rem; color: var(--accent); }
.explorable-body dl {
  display: flex; flex-wrap: wrap; gap: 0.3rem 1.4rem; margin: 0.4rem 0; padding: 0; font-size: 0.9em;
}
.explorable-body dl > div { display: flex; flex-direction: column; }
.explorable-body dt { font-weight: 400; color: var(--muted); margin: 0; }
.explorable-body dt i { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%; margin-right: 0.35em; }
.explorable-body dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.explorable-body table { border-collapse: collapse; font-size: 0.9em; margin: 0.4rem 0; }
.explorable-body :is(td, th) { padding: 0.15rem 0.8rem 0.15rem 0; text-align: left; }
.explorable-body .said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.explorable-body.waiting > :is(.plots, .controls:not(.ask), dl) { display: none; }
.explorable-body details > summary { cursor: pointer; font-size: 0.95em; color: var(--ink); }
`;

/** @param {string} name @param {Record<string, string>} [attributes] @param {(Node | string)[]} children */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A sentence in which *stars* emphasise. @param {string} text */
function marked(text) {
  return text.split("*").map((part, i) => (i % 2 ? element("em", {}, part) : part));
}

export const prefersStillness = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** @param {number} value @param {number} [digits] */
export const round = (value, digits = 2) => Number(value.toFixed(digits));

/** A number as text, with a true minus sign. @param {number} value @param {number} [digits] */
export const shown = (value, digits = 2) =>
  Number.isFinite(value) ? round(value, digits).toFixed(digits).replace("-", "−") : "none";

/** @param {number} value */
export const percent = (value) => `${shown(value, 0)}%`;

/** A vector of two numbers. @param {number[]} v @returns {[number, number]} */
export const pair = (v) => [v[0], v[1]];

/** One explorable in its place: what it shows is a function of its state. */
export class Room {
  /**
   * @param {{model: Model, el: HTMLElement}} context
   * @param {{name: string, start: State, task: string, answer: string}} about task: something to do, and a question;
   *   answer: what doing it shows
   */
  constructor({ model, el }, { name, start, task, answer }) {
    this.model = model;
    this.name = name;
    this.start = { ...start, ...model.get("state") };
    /** @type {State} */
    this.state = { ...this.start };
    this.el = element("div", { class: "explorable-body" }, element("style", {}, STYLE));
    this.plots = element("div", { class: "plots" });
    this.controls = element("div", { class: "controls" });
    this.readings = element("dl");
    this.said = element("p", { class: "said", role: "status" });
    const hidden = element("details", {}, element("summary", {}, "Answer"), element("p", {}, ...marked(answer)));
    this.el.append(element("p", {}, ...marked(task)), this.plots, this.controls, this.readings, this.said, hidden);
    if (model.get("caption")) el.append(element("strong", {}, model.get("caption")));
    el.append(this.el);
    /** @type {(() => void)[]} */
    this.followers = [];
    /** @type {() => void} */
    this.draw = () => {};
    this.quiet = 0;
    model.on("change:state", () => {
      if (JSON.stringify(model.get("state")) !== JSON.stringify(this.state)) this.take(model.get("state"));
    });
  }

  /** Call when everything stands: shows the state, that of the page's address first. @param {() => string} draw */
  open(draw) {
    this.sentence = draw;
    this.button("Reset", () => this.take({}));
    if (this.model.get("page")) this.offerLink();
    this.take(this.linked() ?? {});
    new ResizeObserver(() => this.show()).observe(this.plots);
  }

  /** Replace the state: what is not named is as at the start. @param {State} state */
  take(state) {
    this.state = { ...this.start, ...state };
    this.tell();
  }

  /** Change parts of the state. @param {State} change */
  set(change) {
    Object.assign(this.state, change);
    this.tell();
  }

  tell() {
    this.show();
    this.model.set("state", { ...this.state });
    this.model.save_changes();
  }

  show() {
    const begin = performance.now();
    for (const follow of this.followers) follow();
    const text = this.sentence?.() ?? "";
    this.el.dataset.ms = String(performance.now() - begin);
    // A screen reader hears where things stand once the hand rests.
    clearTimeout(this.quiet);
    this.quiet = setTimeout(() => (this.said.textContent = text), this.said.textContent ? 250 : 0);
  }

  /** The state that the page's address carries, if it is meant for this explorable. @returns {State | undefined} */
  linked() {
    const [name, state] = location.hash.slice(1).split("=");
    if (!this.model.get("page") || name !== this.name || !state) return undefined;
    try {
      return JSON.parse(decodeURIComponent(state));
    } catch {
      return undefined;
    }
  }

  offerLink() {
    const link = /** @type {HTMLAnchorElement} */ (element("a", { class: "link" }, "Link to this state"));
    this.controls.append(link);
    this.followers.push(() => {
      const changed = Object.entries(this.state).filter(
        ([key, value]) => JSON.stringify(value) !== JSON.stringify(this.start[key]),
      );
      link.href = `#${this.name}=${encodeURIComponent(JSON.stringify(Object.fromEntries(changed)))}`;
    });
    link.addEventListener("click", () => navigator.clipboard?.writeText(link.href).catch(() => {}));
    addEventListener("hashchange", () => {
      const state = this.linked();
      if (state) this.take(state);
    });
    if (this.linked()) setTimeout(() => this.el.scrollIntoView());
  }

  /** @param {string} label @param {() => void} press */
  button(label, press) {
    const button = /** @type {HTMLButtonElement} */ (element("button", { type: "button" }, label));
    button.addEventListener("click", press);
    this.controls.append(button);
    return button;
  }

  /**
   * A slider over a list of values.
   * @param {string} key of the state @param {string} label @param {number[]} values
   * @param {(value: number) => string} [format]
   */
  slider(key, label, values, format = String) {
    const output = element("output");
    const input = /** @type {HTMLInputElement} */ (
      element("input", { type: "range", min: "0", max: String(values.length - 1), "aria-label": label, name: key })
    );
    this.controls.append(element("label", {}, element("span", {}, `${label} `, output), input));
    input.addEventListener("input", () => this.set({ [key]: values[Number(input.value)] }));
    this.followers.push(() => {
      const value = Number(this.state[key]);
      const near = values.reduce((best, v, i) => (Math.abs(v - value) < Math.abs(values[best] - value) ? i : best), 0);
      input.value = String(near);
      output.textContent = format(value);
      input.setAttribute("aria-valuetext", format(value));
    });
  }

  /** A box to tick. @param {string} key of the state @param {string} label */
  check(key, label) {
    const input = /** @type {HTMLInputElement} */ (element("input", { type: "checkbox", name: key }));
    this.controls.append(element("label", { class: "check" }, input, label));
    input.addEventListener("change", () => this.set({ [key]: input.checked }));
    this.followers.push(() => (input.checked = Boolean(this.state[key])));
  }

  /** A list. @param {string} key of the state @param {string} label @param {Record<string, string>} options */
  choice(key, label, options) {
    const input = /** @type {HTMLSelectElement} */ (element("select", { name: key }));
    for (const [value, text] of Object.entries(options)) input.append(element("option", { value }, text));
    this.controls.append(element("label", {}, label, input));
    input.addEventListener("change", () => this.set({ [key]: input.value }));
    this.followers.push(() => (input.value = String(this.state[key])));
  }

  /**
   * Named numbers. Returns what shows them; each `dd` carries the number itself as `data-value`.
   * @param {Record<string, string>} labels by name @param {Record<string, string>} [colours] of a spot before a label
   */
  numbers(labels, colours = {}) {
    /** @type {Record<string, HTMLElement>} */
    const places = {};
    for (const [name, label] of Object.entries(labels)) {
      places[name] = element("dd", { "data-name": name });
      const spot = colours[name] ? [element("i", { style: `background: ${colours[name]}` })] : [];
      this.readings.append(element("div", {}, element("dt", {}, ...spot, label), places[name]));
    }
    /** @param {Record<string, number>} values @param {(value: number) => string} format */
    return (values, format) => {
      for (const [name, value] of Object.entries(values)) {
        places[name].dataset.value = String(value);
        places[name].textContent = format(value);
      }
    };
  }

  /**
   * Nothing more is loaded until the reader asks: a button that says how much, and until then the still.
   * @param {{el: HTMLElement}} place @param {number} megabytes @param {() => Promise<void>} load
   */
  beforehand({ el }, megabytes, load) {
    const how = element("p", { role: "status" });
    const button = element("button", { type: "button" }, `Load the models (${megabytes} MB)`);
    const waiting = element("div", { class: "ask controls" }, button, how);
    this.el.classList.add("waiting");
    this.plots.before(waiting);
    button.addEventListener("click", async () => {
      button.setAttribute("disabled", "");
      how.textContent = "Loading …";
      const begin = performance.now();
      try {
        await load();
        el.querySelector(".still")?.remove();
        waiting.remove();
        this.el.classList.remove("waiting");
        this.show();
        this.el.dataset.loaded = String(performance.now() - begin);
      } catch (error) {
        how.textContent = `The models could not be loaded: ${error instanceof Error ? error.message : error}`;
        button.removeAttribute("disabled");
      }
    });
  }

  /** What controls come now stand together, under a title. @param {string} title */
  group(title) {
    const group = element("fieldset", { class: "controls" }, element("legend", {}, title));
    this.controls.after(group);
    this.controls = group;
    return group;
  }

  /** @param {PlotAbout} about */
  plot(about) {
    return new Plot(this, about);
  }

  /**
   * Frames, one after the other, until `next` returns false; for readers who prefer stillness, the last one at once.
   * @param {string} label @param {() => boolean} next @param {number} [pause] in ms
   */
  player(label, next, pause = 60) {
    let timer = 0;
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      button.textContent = label;
    };
    const button = this.button(label, () => {
      if (timer) return stop();
      if (prefersStillness()) {
        while (next());
        return;
      }
      button.textContent = "Pause";
      timer = setInterval(() => {
        if (!button.isConnected || !next()) stop();
      }, pause);
    });
    return stop;
  }
}

/**
 * @typedef {{label: string, x: [number, number], y: [number, number], xTitle: string, yTitle: string, height?: number,
 *            square?: boolean, kind?: "wide" | "whole", xText?: (tick: number) => string,
 *            yText?: (tick: number) => string, yTicks?: number}} PlotAbout
 */

const MARGIN = { left: 50, right: 10, top: 8, bottom: 40 };
let plots = 0; // of this page
const STEPS = 50; // presses of an arrow key from one end of an axis to the other

/** Axes, and layers of points, lines and arrows on them. */
export class Plot {
  /** @param {Room} room @param {PlotAbout} about */
  constructor(room, about) {
    this.about = about;
    const place = element("div", { class: `plot ${about.kind ?? ""}` });
    room.plots.append(place);
    this.place = place;
    this.svg = select(place).append("svg").attr("role", "group").attr("aria-label", about.label);
    this.axes = this.svg.append("g").attr("class", "axis").attr("aria-hidden", "true");
    this.clip = `explorable-clip-${++plots}`;
    this.frame = this.svg.append("clipPath").attr("id", this.clip).append("rect");
    this.inside = this.svg.append("g").attr("clip-path", `url(#${this.clip})`).attr("aria-hidden", "true");
    this.top = this.svg.append("g");
    this.x = scaleLinear();
    this.y = scaleLinear();
    this.drawn = "";
    this.points = /** @type {Point[]} */ ([]);
    this.listen();
    room.followers.push(() => this.fit());
  }

  /** Axes and scales for the present width and domains. */
  fit() {
    const { about, x, y } = this;
    const width = Math.max(this.place.clientWidth, 200);
    const height = about.square
      ? ((width - MARGIN.left - MARGIN.right) * (about.y[1] - about.y[0])) / (about.x[1] - about.x[0]) +
        MARGIN.top +
        MARGIN.bottom
      : (about.height ?? 260);
    const now = JSON.stringify([width, height, about.x, about.y, about.yTitle]);
    if (now === this.drawn) return;
    this.drawn = now;
    this.svg.attr("height", height).attr("viewBox", `0 0 ${width} ${height}`);
    const [left, right, top, bottom] = [MARGIN.left, width - MARGIN.right, MARGIN.top, height - MARGIN.bottom];
    x.domain(about.x).range([left, right]);
    y.domain(about.y).range([bottom, top]);
    this.frame.attr("x", left).attr("y", top).attr("width", right - left).attr("height", bottom - top);
    this.axes.selectAll("*").remove();
    const plain = (/** @type {number} */ tick) => String(round(tick, 3)).replace("-", "−");
    for (const tick of x.ticks(Math.min(8, width / 60))) {
      const text = (about.xText ?? plain)(tick);
      if (!text) continue;
      this.axes.append("line").attr("x1", x(tick)).attr("x2", x(tick)).attr("y1", top).attr("y2", bottom);
      this.text(text, x(tick), bottom + 15, "middle");
    }
    for (const tick of y.ticks(about.yTicks ?? Math.min(6, height / 40))) {
      const text = (about.yText ?? plain)(tick);
      if (!text) continue;
      this.axes.append("line").attr("x1", left).attr("x2", right).attr("y1", y(tick)).attr("y2", y(tick));
      this.text(text, left - 6, y(tick) + 4, "end");
    }
    this.text(about.xTitle, (left + right) / 2, height - 6, "middle");
    this.text(about.yTitle, 0, 0, "middle").attr("transform", `translate(12 ${(top + bottom) / 2}) rotate(-90)`);
  }

  /** @param {string} text @param {number} x @param {number} y @param {string} anchor */
  text(text, x, y, anchor) {
    return this.axes.append("text").text(text).attr("x", x).attr("y", y).attr("text-anchor", anchor);
  }

  /** Small marks without a handle. @param {string} layer @param {{x: number, y: number, colour: string,
   *  hollow?: boolean, shape?: keyof typeof SHAPES, opacity?: number, size?: number}[]} marks */
  marks(layer, marks) {
    const place = this.layer(layer);
    const drawn = /** @type {any} */ (place.node());
    if (drawn.marks === marks && drawn.drawn === this.drawn) return; // many points, and none has moved
    Object.assign(drawn, { marks, drawn: this.drawn });
    place
      .selectAll("path")
      .data(marks)
      .join("path")
      .attr("transform", (d) => `translate(${this.x(d.x)} ${this.y(d.y)})`)
      .attr("d", (d) => symbol(SHAPES[d.shape ?? "circle"], d.size ?? 14)())
      .attr("opacity", (d) => d.opacity ?? 0.5)
      .attr("fill", (d) => (d.hollow || d.shape === "cross" ? "none" : d.colour))
      .attr("stroke", (d) => (d.hollow || d.shape === "cross" ? d.colour : "none"));
  }

  /** Lines through points. @param {string} layer @param {{points: [number, number][], colour: string, width?: number,
   *  dash?: string, opacity?: number}[]} lines */
  lines(layer, lines) {
    const path = d3Line(
      (/** @type {[number, number]} */ p) => this.x(p[0]),
      (/** @type {[number, number]} */ p) => this.y(p[1]),
    ).defined((p) => Number.isFinite(p[0]) && Number.isFinite(p[1]));
    this.layer(layer)
      .selectAll("path")
      .data(lines)
      .join("path")
      .attr("d", (d) => path(d.points))
      .attr("fill", "none")
      .attr("stroke", (d) => d.colour)
      .attr("stroke-width", (d) => d.width ?? 2)
      .attr("stroke-dasharray", (d) => d.dash ?? null)
      .attr("opacity", (d) => d.opacity ?? 1);
  }

  /** The line w x + b = 0. @param {string} layer @param {{w: number[], b: number, colour: string, dash?: string,
   *  width?: number}[]} borders */
  borders(layer, borders) {
    this.lines(
      layer,
      borders.map(({ w, b, ...style }) => {
        const square = w[0] ** 2 + w[1] ** 2;
        const far = 100 / Math.sqrt(square);
        const [x, y] = [(-b * w[0]) / square, (-b * w[1]) / square];
        return { points: [[x - far * w[1], y + far * w[0]], [x + far * w[1], y - far * w[0]]], ...style };
      }),
    );
  }

  /** Arrows. @param {string} layer @param {{from: [number, number], to: [number, number], colour: string,
   *  width?: number}[]} arrows */
  arrows(layer, arrows) {
    this.layer(layer)
      .selectAll("path")
      .data(arrows)
      .join("path")
      .attr("d", ({ from, to, width = 2.5 }) => {
        const [x1, y1, x2, y2] = [this.x(from[0]), this.y(from[1]), this.x(to[0]), this.y(to[1])];
        const length = Math.hypot(x2 - x1, y2 - y1);
        if (length < 0.5) return "";
        const head = Math.min(3.5 * width, length);
        const [ux, uy] = [((x2 - x1) / length) * head, ((y2 - y1) / length) * head];
        const [bx, by] = [x2 - ux, y2 - uy];
        const side = `${bx - uy / 2} ${by + ux / 2} L ${x2} ${y2} L ${bx + uy / 2} ${by - ux / 2}`;
        return `M ${x1} ${y1} L ${bx} ${by} M ${side} Z`;
      })
      .attr("stroke", (d) => d.colour)
      .attr("fill", (d) => d.colour)
      .attr("stroke-width", (d) => d.width ?? 2.5)
      .attr("stroke-linejoin", "round");
  }

  /** Words beside a place. @param {string} layer @param {{x: number, y: number, text: string, dx?: number, dy?: number,
   *  anchor?: string}[]} words */
  words(layer, words) {
    this.layer(layer)
      .selectAll("text")
      .data(words)
      .join("text")
      .attr("class", "halo")
      .text((d) => d.text)
      .attr("text-anchor", (d) => d.anchor ?? "middle")
      .attr("x", (d) => this.x(d.x) + (d.dx ?? 0))
      .attr("y", (d) => this.y(d.y) + (d.dy ?? 0));
  }

  /** @param {string} name @returns {import("d3-selection").Selection<any, any, any, any>} */
  layer(name) {
    const found = this.inside.select(`.${name}`);
    return found.empty() ? this.inside.append("g").attr("class", name) : found;
  }

  /**
   * Points for a hand: those with `move` are dragged, or moved by the arrow keys (with Shift five times as far); those
   * with `press` are pressed, by Enter or the space bar as well.
   * @param {Point[]} points
   * @param {boolean} [rove] many points are one stop of the Tab key, and arrow keys go from one to the next
   */
  handles(points, rove = false) {
    this.points = points;
    const joined = this.top
      .selectAll("g")
      .data(points, (d) => /** @type {Point} */ (d).id)
      .join((enter) => {
        const made = enter.append("g").attr("tabindex", (_, i) => (rove && i ? -1 : 0)).attr("data-id", (d) => d.id);
        made.append("circle").attr("class", "hit").attr("r", 17);
        made.append("path").attr("class", "mark");
        made.filter((d) => Boolean(d.press)).attr("role", "button");
        made.filter((d) => Boolean(d.move)).attr("role", "slider").attr("data-move", "")
          .attr("aria-roledescription", "point to move");
        made.on("keydown", (event, d) => {
          const way = /** @type {Record<string, [number, number]>} */ ({
            ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1],
          })[event.key];
          if (d.move && way) {
            const [[left, right], [low, high]] = [this.about.x, this.about.y];
            const far = (event.shiftKey ? 5 : 1) / STEPS;
            this.move(d, d.x + way[0] * far * (right - left), d.y + way[1] * far * (high - low));
          } else if (rove && way) this.rove(d, way);
          else if (d.press && (event.key === "Enter" || event.key === " ")) d.press();
          else return;
          event.preventDefault();
        });
        return made;
      });
    joined
      .attr("transform", (d) => `translate(${this.x(d.x)} ${this.y(d.y)})`)
      .attr("aria-label", (d) => d.label)
      .attr("aria-pressed", (d) => (d.press ? String(Boolean(d.pressed)) : null))
      .attr("aria-valuenow", (d) => (d.move ? round(d.x) : null))
      .attr("aria-valuemin", (d) => (d.move ? this.about.x[0] : null))
      .attr("aria-valuemax", (d) => (d.move ? this.about.x[1] : null))
      .attr("aria-valuetext", (d) => (d.move ? `${shown(d.x, 1)}, ${shown(d.y, 1)}` : null));
    joined
      .select(".mark")
      .attr("d", (d) => symbol(SHAPES[d.shape ?? "circle"], d.size ?? 110)())
      .attr("fill", (d) => (d.hollow ? "var(--pst-color-background, #fff)" : d.shape === "cross" ? "none" : d.colour))
      .attr("stroke", (d) => d.colour)
      .attr("stroke-width", 2.2);
  }

  /** From a point to the nearest one in a direction. @param {Point} from @param {[number, number]} way */
  rove(from, way) {
    const ahead = this.points.map((d) => {
      const [dx, dy] = [this.x(d.x) - this.x(from.x), this.y(from.y) - this.y(d.y)];
      const [along, aside] = [dx * way[0] + dy * way[1], Math.abs(dx * way[1]) + Math.abs(dy * way[0])];
      return { d, far: along > 0.5 ? along + 2 * aside : Infinity };
    });
    const next = ahead.reduce((best, one) => (one.far < best.far ? one : best));
    if (next.far === Infinity) return;
    this.top.selectAll("g").attr("tabindex", (d) => (d === next.d ? 0 : -1));
    /** @type {HTMLElement} */ (this.top.select(`[data-id="${next.d.id}"]`).node()).focus();
  }

  /** @param {Point | undefined} point @param {number} x @param {number} y */
  move(point, x, y) {
    const [[left, right], [low, high]] = [this.about.x, this.about.y];
    point?.move?.(round(Math.min(right, Math.max(left, x)), 3), round(Math.min(high, Math.max(low, y)), 3));
  }

  /**
   * Of the points that a hand may mean, the nearest: their places overlap.
   * @param {number} x in pixels @param {number} y @param {"move" | "press"} what
   */
  nearest(x, y, what) {
    const far = (/** @type {Point} */ d) => Math.hypot(this.x(d.x) - x, this.y(d.y) - y);
    return this.points.filter((d) => d[what] && far(d) < 20).sort((a, b) => far(a) - far(b))[0];
  }

  listen() {
    const svg = /** @type {SVGSVGElement} */ (this.svg.node());
    const at = (/** @type {any} */ event) => pointer(event.touches?.[0] ?? event, svg);
    const dragged = drag()
      .container(() => /** @type {any} */ (svg))
      .filter((event) => !event.button && Boolean(this.nearest(.../** @type {[number, number]} */ (at(event)), "move")))
      .subject((event) => {
        const point = this.nearest(event.x, event.y, "move");
        return { id: point.id, x: this.x(point.x), y: this.y(point.y) };
      })
      .on("start", (event) => {
        const part = this.top.select(`[data-id="${event.subject.id}"]`).node();
        /** @type {HTMLElement} */ (part).focus({ preventScroll: true });
      })
      .on("drag", (event) => {
        const point = this.points.find((d) => d.id === event.subject.id);
        this.move(point, this.x.invert(event.x), this.y.invert(event.y));
      });
    this.svg.call(/** @type {any} */ (dragged)).style("touch-action", null);
    this.svg.on("click", (event) => this.nearest(.../** @type {[number, number]} */ (at(event)), "press")?.press?.());
  }
}

/**
 * Put an explorable wherever this page has a place for it: a page without a kernel, whose state stands in the HTML.
 * @param {string} name @param {Explorable} explorable
 */
export function mount(name, explorable) {
  for (const el of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(`[data-explorable="${name}"]`))) {
    if (el.dataset.ready) continue;
    /** @type {State} */
    const values = { state: JSON.parse(el.dataset.state ?? "{}"), page: true };
    explorable.render({
      el,
      model: { get: (key) => values[key], set: (key, value) => (values[key] = value), save_changes() {}, on() {} },
    });
    if (!el.querySelector(".waiting")) el.querySelector(".still")?.remove();
    el.dataset.ready = "1";
  }
}
