/**
 * Whose derivative (chapter 11): what each way to a hypergradient makes of directions with different curvature.
 *
 * The inner loss is quadratic here, so that directions do not mix; the hard set asks for the same in each of them.
 */

import * as math from "./math.js";
import { COLOURS, pair, percent, Room, shown } from "./parts.js";

const START = { curvatures: [-2.4, -1.6, -0.9, -0.3, 0.2], steps: 20, alpha: 0.5, last: 5 };
const WAYS = /** @type {const} */ (["exact", "truncated", "first", "implicit"]);
const NAMES = { exact: "exact", truncated: "truncated", first: "first order", implicit: "implicit" };
const INK = { exact: COLOURS.caml, truncated: COLOURS.minority, first: COLOURS.upweight, implicit: COLOURS.good };
const RANGE = /** @type {[number, number]} */ ([-3, 0.6]); // powers of ten

/** @param {number} share */
const percentOf = (share) => percent(100 * share);

export default {
  /** @param {{model: import("./parts.js").Model, el: HTMLElement}} context */
  render(context) {
    const room = new Room(context, {
      name: "whose_derivative",
      start: START,
      task:
        "Five directions, each with its curvature λ: drag the diamonds. Each way to the derivative multiplies a " +
        "direction by its own factor (curves); the right figure shows the gradients that come out, at equal length. " +
        "Bring the diamonds together, left, then right, then spread them out. *When do truncation and first order " +
        "only change the length, when do they turn the gradient? Does the implicit way ever turn it much?*",
      answer:
        "Where all curvatures are alike, every way has one factor: only the length is wrong, wherever they lie. Where " +
        "they spread over both sides of αTλ = 1, truncation forgets the flat directions and first order overrates the " +
        "steep ones: both turn, to the same side. The implicit way never turns by more than 8 degrees as long as no " +
        "step overshoots (αλ ≤ 1).",
    });
    const curves = room.plot({
      label: "Factors by curvature", x: RANGE, y: [-0.22, 1.15], xTitle: "curvature λ", yTitle: "factor, in units of αT",
      kind: "wide", height: 340, xText: (tick) => (Number.isInteger(tick) ? shown(10 ** tick, Math.max(0, -tick)) : ""),
    });
    const vectors = room.plot({
      label: "The gradient that comes out", x: [-0.3, 4.3], y: [-0.05, 1.05], xTitle: "direction, flat to steep",
      yTitle: "share of the gradient", height: 340, xText: (tick) => (Number.isInteger(tick) ? String(tick + 1) : ""),
    });
    room.slider("steps", "steps T", [5, 10, 20, 50]);
    room.slider("alpha", "step α", [0.02, 0.05, 0.1, 0.2, 0.5]);
    room.slider("last", "truncated to the last", [1, 2, 3, 5, 10, 20, 50]);
    room.button("All flat", () => room.set({ curvatures: [-2.9, -2.8, -2.7, -2.6, -2.5] }));
    room.button("All alike", () => room.set({ curvatures: [-0.5, -0.5, -0.5, -0.5, -0.5] }));
    room.button("Spread", () => room.set({ curvatures: START.curvatures }));
    const three = /** @type {const} */ (["truncated", "first", "implicit"]);
    const labels = Object.fromEntries(three.flatMap((way) => [
      [`${way}-angle`, `${NAMES[way]}: turned by`], [`${way}-length`, "length"],
    ]));
    const spots = Object.fromEntries(three.map((way) => [`${way}-angle`, INK[way]]));
    const tell = room.numbers({ ...labels, exact: "exact: length" }, { ...spots, exact: INK.exact });

    room.open(() => {
      const { curvatures, steps, alpha, last } = room.state;
      const how = { alpha, steps, last: Math.min(last, steps) };
      /** @param {number} power */
      const at = (power) => math.factors(10 ** power, how);
      const grid = Array.from({ length: 121 }, (_, i) => RANGE[0] + (i * (RANGE[1] - RANGE[0])) / 120);
      curves.lines("curves", WAYS.map((way) => ({
        points: grid.map((power) => pair([power, at(power)[way] / (alpha * steps)])), colour: INK[way],
        width: way === "exact" ? 4 : 2.5,
      })));
      const border = Math.log10(1 / (alpha * steps));
      curves.lines("border", [{ points: [[border, 0], [border, 1.15]], colour: COLOURS.grey, dash: "3 4" }]);
      curves.words("border-name", [{ x: border, y: 1.06, text: "αTλ = 1", dx: 6, anchor: "start" }]);
      curves.handles(curvatures.map((/** @type {number} */ power, /** @type {number} */ i) => ({
        id: `direction-${i}`, x: power, y: -0.11, colour: COLOURS.ink, shape: /** @type {const} */ ("diamond"), size: 120,
        label: `curvature of direction ${i + 1}: ${shown(10 ** power, 3)}`,
        move: (/** @type {number} */ x) => room.set({ curvatures: room.state.curvatures.with(i, x) }),
      })));
      const sorted = curvatures.toSorted((/** @type {number} */ a, /** @type {number} */ b) => a - b);
      const found = /** @type {Record<typeof WAYS[number], number[]>} */ (
        Object.fromEntries(WAYS.map((way) => [way, sorted.map((/** @type {number} */ power) => at(power)[way])]))
      );
      vectors.lines("vectors", WAYS.map((way) => ({
        points: found[way].map((value, i) => pair([i, value / math.norm(found[way])])), colour: INK[way],
        width: way === "exact" ? 4 : 2.5,
      })));
      const truth = found.exact;
      tell({ exact: 1 }, percentOf);
      /** @type {Record<string, number>} */
      const angles = {};
      for (const way of three) {
        const [long, exact] = [math.norm(found[way]), math.norm(truth)];
        const cosine = math.dot(found[way], truth) / (long * exact);
        angles[way] = (Math.acos(Math.min(1, cosine)) * 180) / Math.PI;
        tell({ [`${way}-angle`]: angles[way] }, (value) => `${shown(value, 0)}°`);
        tell({ [`${way}-length`]: long / exact }, percentOf);
      }
      return `Curvatures ${sorted.map((/** @type {number} */ p) => shown(10 ** p, 3)).join(", ")}: ` +
        three.map((way) => `${NAMES[way]} is turned by ${shown(angles[way], 0)} degrees`).join(", ") + ".";
    });
  },
};
