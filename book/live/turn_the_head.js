/**
 * Turn the head (chapter 02): a line to drag over stored features, and the accuracies that it gets.
 *
 * The chapter hands over its test set as `points`: rows (background, bird, group) in the plane of its two probes, with
 * group = 2 * label + attribute. Without them, drawn points stand in.
 */

import * as math from "./math.js";
import { COLOURS, pair, percent, Room, shown } from "./parts.js";

const GROUPS = ["landbird on land", "landbird on water", "waterbird on land", "waterbird on water"];
const TRAIN = [95, 5, 5, 95]; // the training set's proportions
const ROWS = /** @type {const} */ (["adjusted", "average", "worst"]);
const NAMES = { adjusted: "reweighted average", average: "average", worst: "worst group" };

function drawn() {
  const next = math.normal(3);
  return Array.from({ length: 1000 }, (_, i) => {
    const [y, a] = [i % 2, (i >> 1) % 2];
    return [round(6 * (2 * a - 1) + 2 * next()), round(1.8 * (2 * y - 1) + 1.5 * next()), 2 * y + a];
  });
}

/** @param {number} value */
const round = (value) => Math.round(100 * value) / 100;

export default {
  /** @param {{model: import("./parts.js").Model, el: HTMLElement}} context */
  render(context) {
    /** @type {number[][]} */
    const points = context.model.get("state").points ?? drawn();
    const reach = [0, 1].map((k) => Math.ceil(Math.max(...points.map((p) => Math.abs(p[k])))));
    const room = new Room(context, {
      name: "turn_the_head",
      start: { a: [-0.5, reach[1] / 2], b: [0.5, -reach[1] / 2] },
      task:
        "The line is a head: above and right of it, it says waterbird (light dots). Drag its two ends. *How far can you " +
        "lift the worst group? What do the two averages say meanwhile?* Press *Look for the best* when you have tried.",
      answer:
        "The line at the start follows the background. The reweighted average, which counts groups as they occur in " +
        "training, is then near its best and hides that the head is wrong about most of the minority. Turned to follow " +
        "the bird, the worst group gains many times what the reweighted average loses. The plain average of this " +
        "balanced test set rises, too, but it cannot say who was left behind.",
    });
    const plane = room.plot({
      label: "Features of the test set", x: [-reach[0], reach[0]], y: [-reach[1], reach[1]],
      xTitle: "background (land ← → water)", yTitle: "bird (land ← → water)", kind: "wide", height: 380,
    });
    const bars = room.plot({
      label: "Accuracies with their intervals", x: [0, 104], y: [-6.5, 0.9], xTitle: "accuracy (%)", yTitle: "",
      height: 380, yText: () => "",
    });
    const y = points.map((p) => p[2] >> 1);
    const a = points.map((p) => p[2] & 1);
    const dots = points.map((p, i) => ({
      x: p[0], y: p[1], colour: y[i] ? COLOURS.waterbird : COLOURS.landbird, opacity: 0.55,
      size: y[i] === a[i] ? 16 : 26,
    }));
    /** Waterbirds are on the left of the way from one end to the other. @param {number[]} from @param {number[]} to */
    const judge = (from, to) => {
      const [dx, dy] = math.add(to, from, -1);
      const guess = points.map((p) => (dx * (p[1] - from[1]) - dy * (p[0] - from[0]) > 0 ? 1 : 0));
      return math.groupAccuracies(guess, y, a, 2, TRAIN);
    };
    /** @param {number} at @param {number} slope the line through (0, at), its ends at the sides */
    const ends = (at, slope) => ({
      a: [-reach[0] / 2, round(at - (slope * reach[0]) / 2)], b: [reach[0] / 2, round(at + (slope * reach[0]) / 2)],
    });
    room.button("Look for the best", () => {
      let best = { worst: -1, state: {} };
      for (let at = -reach[1] / 3; at <= reach[1] / 3; at += reach[1] / 45) {
        for (let slope = -0.6; slope <= 0.6; slope += 0.05) {
          const state = ends(at, (slope * reach[1]) / reach[0]);
          const { worst } = judge(state.a, state.b);
          if (worst > best.worst) best = { worst, state };
        }
      }
      room.set(best.state);
    });
    const tell = room.numbers({ ...NAMES, minority: "minority", majority: "majority" });

    room.open(() => {
      const state = room.state;
      const found = judge(state.a, state.b);
      plane.marks("dots", dots);
      const w = [-(state.b[1] - state.a[1]), state.b[0] - state.a[0]];
      plane.borders("head", [{ w, b: -math.dot(w, state.a), colour: COLOURS.ink, width: 3 }]);
      plane.handles(["a", "b"].map((id) => ({
        id, x: state[id][0], y: state[id][1], colour: COLOURS.ink, shape: /** @type {const} */ ("square"), size: 150,
        label: `end ${id} of the line: background ${shown(state[id][0], 1)}, bird ${shown(state[id][1], 1)}`,
        move: (/** @type {number} */ x, /** @type {number} */ y) => {
          const other = state[id === "a" ? "b" : "a"];
          if (Math.hypot(x - other[0], y - other[1]) > 0.2) room.set({ [id]: [x, y] });
        },
      })));
      const rows = [
        ...found.groups.map(({ value, low, high }, g) => ({
          name: GROUPS[g], value, low, high, colour: g === 1 || g === 2 ? COLOURS.minority : COLOURS.majority,
        })),
        ...ROWS.map((name) => ({ name: NAMES[name], value: found[name], low: NaN, high: NaN, colour: COLOURS.ink })),
      ];
      bars.words("names", rows.map(({ name, value }, i) => ({
        x: 1, y: -i, text: `${name} ${percent(value)}`, dy: -9, anchor: "start",
      })));
      bars.lines("intervals", rows.flatMap(({ value, low, high, colour }, i) => [
        { points: [pair([0, -i]), pair([value, -i])], colour, width: 5, opacity: 0.45 },
        { points: [pair([low, -i]), pair([high, -i])], colour, width: 2 },
      ]));
      bars.marks("values", rows.map(({ value, colour }, i) => ({ x: value, y: -i, colour, opacity: 1, size: 60 })));
      const { adjusted, average, worst, minority, majority } = found;
      tell({ adjusted, average, worst, minority, majority }, percent);
      return `Reweighted average ${percent(adjusted)}, average ${percent(average)}, worst group ${percent(worst)}; ` +
        found.groups.map(({ value }, g) => `${GROUPS[g]} ${percent(value)}`).join(", ") + ".";
    });
  },
};
