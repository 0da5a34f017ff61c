/**
 * Ask yourself (chapters 04, 16): buy labels by hand, then see what least confidence, the highest loss, core-set, BADGE
 * and chance buy for as much.
 *
 * The pool has a shortcut, a small minority, and "fog": points on neither background, whose labels say nothing.
 */

import * as math from "./math.js";
import { COLOURS, element, percent, Room } from "./parts.js";

const START = { bought: /** @type {number[]} */ ([]), fog: 30, reveal: false, show: "you" };
const [POOL, MINORITY, BUDGET, STEPS] = [200, 16, 20, 60];
const NOTHING = { weight: [[0, 0], [0, 0]], bias: [0, 0] };
const ASKERS = {
  you: "you", confidence: "least confidence", loss: "highest loss", core: "core-set", badge: "BADGE",
  chance: "chance",
};
const CLASS = ["landbird", "waterbird"];

/** @param {number} n @param {number} minority @param {number} fog how many of the last @param {number} seed */
function draw(n, minority, fog, seed) {
  const next = math.normal(seed);
  const y = Array.from({ length: n }, (_, i) => i % 2);
  const a = y.map((c, i) => (i < minority ? 1 - c : c));
  const x = y.map((_, i) => {
    const [u, v] = [next(), next()];
    return i >= n - fog ? [0.5 * u, 0.8 * v] : [2.4 * (2 * a[i] - 1) + 0.6 * u, 1.2 * (2 * y[i] - 1) + 0.5 * v];
  });
  return { x, y, a };
}

/** What is known at the start, what can be bought, and a test set without fog. @param {number} fog */
function market(fog) {
  const pool = draw(POOL, MINORITY, fog, 1);
  const test = draw(400, 200, 0, 99);
  const known = math.sample(POOL - MINORITY - 40, 20, math.uniform(11)).map((i) => i + MINORITY);
  const open = pool.y.map((_, i) => i).filter((i) => !known.includes(i));
  /** The head after training on what is known and these rows, and how it does. @param {number[]} rows */
  const fit = (rows) => {
    const all = [...known, ...rows];
    const [x, y] = [all.map((i) => pool.x[i]), all.map((i) => pool.y[i])];
    const head = /** @type {math.Head} */ (math.train(x, y, NOTHING, { alpha: 0.5, steps: STEPS }).at(-1));
    const found = math.groupAccuracies(math.logits(test.x, head).map(math.argmax), test.y, test.a, 2);
    return {
      rows, head, bought: rows.length, found: rows.filter((i) => i < MINORITY).length,
      fog: rows.filter((i) => i >= POOL - fog).length, minority: found.minority, worst: found.worst,
    };
  };
  /** What each buys for k labels, by the head of the start. @param {number} k */
  const others = (k) => {
    const x = open.map((i) => pool.x[i]);
    const z = math.logits(x, fit([]).head);
    const chosen = {
      confidence: math.highest(math.leastConfidence(z), k),
      loss: math.highest(math.crossEntropies(z, open.map((i) => pool.y[i])), k),
      core: math.coreSet(x, known.map((i) => pool.x[i]), k),
      badge: math.badge(z, x, k, math.uniform(5)),
      chance: math.sample(open.length, k, math.uniform(6)),
    };
    return Object.fromEntries(Object.entries(chosen).map(([name, rows]) => [name, fit(rows.map((j) => open[j]))]));
  };
  return { pool, known, open, fit, others };
}

export default {
  /** @param {{model: import("./parts.js").Model, el: HTMLElement}} context */
  render(context) {
    const room = new Room(context, {
      name: "ask_yourself",
      start: START,
      task:
        `Coloured points have labels, grey ones do not. Buy up to ${BUDGET}: click grey points (a second click ` +
        "returns one), and watch your head (line) and the test minority. Then let the others buy as many. *Who finds " +
        "the points that repair the head? Are those the uncertain ones?*",
      answer:
        "Least confidence buys fog: points between the backgrounds, of which the head is unsure and whose labels teach " +
        "nothing, so that even chance does better. The minority is where the head is wrong and *sure*. The highest " +
        "loss finds it, but must know the labels before it buys them; core-set finds it by distance alone; BADGE is " +
        "between. Uncertain is not hard. Clear the fog, and least confidence catches up.",
    });
    const plane = room.plot({
      label: "The pool by background and bird", x: [-4.6, 4.6], y: [-3.4, 3.4],
      xTitle: "background (land ← → water)", yTitle: "bird (land ← → water)", square: true, kind: "whole",
    });
    room.button("Let the others buy", () => room.set({ reveal: true }));
    room.slider("fog", "fog", [0, 10, 20, 30, 40]);
    room.choice("show", "ring what was bought by", ASKERS);
    const table = element("table");
    const heads = ["buyer", "minority", "fog", "test minority", "worst"];
    table.append(element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text))));
    /** @type {Record<string, Record<string, HTMLElement>>} */
    const cells = {};
    for (const [name, label] of Object.entries(ASKERS)) {
      const keys = ["found", "fog", "minority", "worst"];
      cells[name] = Object.fromEntries(keys.map((key) => [key, element("td", { "data-name": `${name}-${key}` })]));
      table.append(element("tr", {}, element("th", { scope: "row" }, label), ...Object.values(cells[name])));
    }
    const tell = room.numbers({ left: "labels left" });
    room.readings.after(table);
    let fog = -1;
    /** @type {ReturnType<typeof market>} */
    let place;
    let others = { k: -1, by: /** @type {Record<string, ReturnType<typeof place.fit>>} */ ({}) };

    room.open(() => {
      const { bought, reveal, show } = room.state;
      if (room.state.fog !== fog) {
        fog = room.state.fog;
        place = market(fog);
        others = { k: -1, by: {} };
      }
      const { pool, known, open } = place;
      const yours = place.fit(bought);
      const k = bought.length || BUDGET;
      if (reveal && others.k !== k) others = { k, by: place.others(k) };
      const all = /** @type {typeof others.by} */ ({ you: yours, ...(reveal ? others.by : {}) });
      const colour = (/** @type {number} */ i) => (pool.y[i] ? COLOURS.waterbird : COLOURS.landbird);
      plane.marks("known", known.map((i) => ({
        x: pool.x[i][0], y: pool.x[i][1], colour: colour(i), opacity: 1, size: 70,
        shape: /** @type {const} */ ("square"),
      })));
      const { weight, bias } = yours.head;
      plane.borders("head", [{
        w: math.add(weight[1], weight[0], -1), b: bias[1] - bias[0], colour: COLOURS.ink, width: 3,
      }]);
      plane.marks("rings", (all[show]?.rows ?? []).map((i) => ({
        x: pool.x[i][0], y: pool.x[i][1], colour: COLOURS.ink, opacity: 1, size: 190, hollow: true,
      })));
      plane.handles(open.map((i) => {
        const mine = bought.includes(i);
        return {
          id: `point-${i}`, x: pool.x[i][0], y: pool.x[i][1],
          colour: mine ? colour(i) : COLOURS.grey, size: mine ? 70 : 40, pressed: mine, label: mine ? `${CLASS[pool.y[i]]}, bought` : "without a label",
          press: () => {
            const now = /** @type {number[]} */ (room.state.bought);
            if (mine) room.set({ bought: now.filter((j) => j !== i) });
            else if (now.length < BUDGET) room.set({ bought: [...now, i] });
          },
        };
      }), true);
      tell({ left: BUDGET - bought.length }, String);
      for (const [name, row] of Object.entries(cells)) {
        for (const [key, cell] of Object.entries(row)) {
          const value = all[name] && Number(all[name][/** @type {"found"} */ (key)]);
          cell.dataset.value = String(value);
          const format = key === "minority" || key === "worst" ? percent : String;
          cell.textContent = value === undefined ? "–" : format(value);
        }
      }
      return `You bought ${bought.length} labels, ${yours.found} of the minority; test minority ` +
        `${percent(yours.minority)}. ` + (reveal ? Object.entries(others.by)
        .map(([name, it]) => `${ASKERS[/** @type {"loss"} */ (name)]} ${percent(it.minority)}`).join(", ") + "." : "");
    });
  },
};
