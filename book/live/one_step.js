/**
 * One step (chapter 07): what the labels D and three queried batches want, and where each method goes from theta.
 *
 * Every loss is half the squared distance to a wish, as in the chapter.
 */

import * as math from "./math.js";
import { COLOURS, pair, Room, shown } from "./parts.js";

const START = { theta: [0, 0], D: [2, 0], Q1: [1, 2], Q2: [0, 2.5], Q3: [-1, 1.5], alpha: 0.5, show: "step" };
const BATCHES = /** @type {const} */ (["Q1", "Q2", "Q3"]);
const METHODS = /** @type {const} */ (["upweight", "mldg", "caml", "exact"]);
const NAMES = { append: "append", upweight: "up-weighting", mldg: "MLDG", caml: "CAML", exact: "CAML, exact" };
const SIZE = 0.5; // of a step; of the path's many steps, half as much

/**
 * What the queries add to the step, -c / R, by each method.
 * @param {Record<string, number[]>} wishes @param {number[]} theta @param {number} alpha
 */
function added(wishes, theta, alpha) {
  const tasks = BATCHES.map((name) => /** @type {[number[], number[]]} */ ([wishes.D, wishes[name]]));
  /** @param {{alpha: number, cumulative?: boolean, order?: "first" | "exact"}} how */
  const by = (how) => math.metaGradient(math.pull, theta, tasks, how).map((value) => -value);
  return {
    append: [0, 0],
    upweight: by({ alpha: 0 }),
    mldg: by({ alpha, cumulative: false }),
    caml: by({ alpha }),
    exact: by({ alpha, order: "exact" }),
  };
}

/** In degrees. @param {number[]} a @param {number[]} b */
const angle = (a, b) =>
  (Math.acos(Math.min(1, Math.max(-1, math.dot(a, b) / (math.norm(a) * math.norm(b))))) * 180) / Math.PI;

export default {
  /** @param {{model: import("./parts.js").Model, el: HTMLElement}} context */
  render(context) {
    const room = new Room(context, {
      name: "one_step",
      start: START,
      task:
        "Drag what the labels D and the batches Q1, Q2, Q3 want; all four pull at θ. Press *They agree*, then " +
        "*They disagree*. CAML differs from MLDG by the bias of earlier rounds. *When does that bias turn the arrow, " +
        "when does it only change its length?*",
      answer:
        "When all batches want the same, CAML's arrow has the direction of MLDG's and is shorter: the bias is only a " +
        "weight, since a wish that earlier rounds made is not paid twice. When an early batch and a late one " +
        "disagree, the arrow turns towards the late one. The right figure says why: here a step is a weighted sum of wishes. " +
        "MLDG takes α times D's wish away, and CAML also takes from early batches. With α = 0 all are up-weighting.",
    });
    const plane = room.plot({
      label: "What the batches want and where each method goes", x: [-2.4, 3], y: [-2.4, 3],
      xTitle: "first parameter", yTitle: "second parameter", square: true, kind: "wide",
    });
    const weights = room.plot({
      label: "How much each wish counts", x: [-0.4, 3.4], y: [-1.1, 0.5], xTitle: "whose wish",
      yTitle: "weight in what is added", height: 300, xText: (tick) => ["D", ...BATCHES][tick] ?? "", yTicks: 5,
    });
    room.choice("show", "show", {
      added: "what the queries add", step: "one step", path: "the whole path",
    });
    room.slider("alpha", "inner step α", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1], shown);
    room.button("They agree", () => room.set({ Q1: [0.5, 2], Q2: [0.5, 2], Q3: [0.5, 2] }));
    room.button("They disagree", () => room.set({ Q1: [0.3, 2.5], Q2: [1, 0.3], Q3: [0.3, -2] }));
    const tell = room.numbers(
      { append: "append adds", upweight: "up-weighting", mldg: "MLDG", caml: "CAML", exact: "CAML, exact" },
      { append: COLOURS.append, ...Object.fromEntries(METHODS.map((name) => [name, COLOURS[name]])) },
    );
    const tellAngles = room.numbers({ turn: "CAML turned from MLDG by", weighed: "from up-weighting by" });

    room.open(() => {
      const { theta, alpha, show } = room.state;
      const wishes = /** @type {Record<string, number[]>} */ (room.state);
      const now = added(wishes, theta, alpha);
      const names = /** @type {(keyof typeof now)[]} */ (Object.keys(now));
      /** @param {number[]} at @param {keyof typeof now} name @param {number} size */
      const stepped = (at, name, size) => {
        const there = added(wishes, at, alpha)[name];
        return math.add(at, math.add(there, math.pull.gradient(at, wishes.D), -1), size);
      };
      plane.arrows("arrows", show === "path" ? [] : names.map((name) => ({
        from: pair(theta),
        to: pair(show === "added" ? math.add(theta, now[name], SIZE) : stepped(theta, name, SIZE)),
        colour: COLOURS[name], width: name === "caml" ? 4 : 3,
      })));
      const paths = show !== "path" ? [] : names.map((name) => {
        const points = [theta];
        for (let t = 0; t < 30; t++) points.push(stepped(points[t], name, SIZE / 2));
        return { points: points.map(pair), colour: COLOURS[name], width: 3 };
      });
      plane.lines("paths", paths);
      plane.marks("ends", paths.flatMap(({ points, colour }) =>
        points.slice(1).map(([x, y]) => ({ x, y, colour, opacity: 1, size: 22 }))));
      plane.words("names", ["D", ...BATCHES].map((name) => ({
        x: wishes[name][0], y: wishes[name][1], text: `${name} wants`, dy: -14,
      })).concat([{ x: theta[0], y: theta[1], text: "θ", dy: 22 }]));
      plane.handles(["theta", "D", ...BATCHES].map((name) => ({
        id: name, x: wishes[name][0], y: wishes[name][1], colour: COLOURS.ink,
        shape: name === "theta" ? "square" : "circle", size: name === "D" ? 170 : 110, hollow: name === "theta",
        label: `${name === "theta" ? "θ, where the step begins" : `what ${name} wants`}: ` +
          wishes[name].map((v) => shown(v, 1)).join(", "),
        move: (/** @type {number} */ x, /** @type {number} */ y) => room.set({ [name]: [x, y] }),
      })));

      // The arrow is linear in the wishes: from theta = 0, a wish counts as much as it does alone, one unit long.
      const alone = ["D", ...BATCHES].map((name) => {
        const only = { D: [0], Q1: [0], Q2: [0], Q3: [0], [name]: [1] };
        return added(only, [0], alpha);
      });
      weights.lines("weights", names.slice(1).map((name) => ({
        points: alone.map((one, i) => [i, one[name][0]]), colour: COLOURS[name], width: name === "caml" ? 3.5 : 2,
      })));
      weights.marks("dots", names.slice(1).flatMap((name) =>
        alone.map((one, i) => ({ x: i, y: one[name][0], colour: COLOURS[name], opacity: 1, size: 50 }))));
      const lengths = names.map((name) => [name, math.norm(now[name])]);
      tell(Object.fromEntries(lengths), shown);
      const turn = angle(now.caml, now.mldg);
      const weighed = angle(now.caml, now.upweight);
      tellAngles({ turn, weighed }, (value) => `${shown(value, 0)}°`);
      return `With α = ${shown(alpha)}, the queries add ` +
        lengths.slice(1).map(([name, length]) => `${shown(Number(length))} by ${NAMES[/** @type {"caml"} */ (name)]}`)
          .join(", ") + `; CAML is turned from MLDG by ${shown(turn, 0)} degrees.`;
    });
  },
};
