/**
 * HSFM by hand (chapter 10): support and hard examples to drag, edits to make one by one.
 *
 * The state holds the support set from which the edits begin, and how many were made; everything else follows.
 */

import * as math from "./math.js";
import { COLOURS, pair, percent, Room, shown } from "./parts.js";

const SUPPORT_Y = [0, 0, 0, 0, 1, 1, 1, 1];
const HARD_Y = [0, 0, 0, 1, 1, 1];
const HEAD = { weight: [[-0.3, -0.1], [0.3, 0.1]], bias: [0, 0] }; // leans on the background
const CLASS = ["landbird", "waterbird"];
const MOST = 80; // edits
const START = {
  support: [[-2.2, -0.9], [-1.6, -0.2], [-2.6, 0.1], [-1.9, -0.6], [2.2, 0.9], [1.7, 0.1], [2.6, -0.2], [1.9, 0.6]],
  hard: [[1.5, -1.2], [2.1, -0.7], [2.4, -1.4], [-1.5, 1.2], [-2.1, 0.7], [-2.4, 1.4]],
  edits: 0,
  steps: 10,
  alpha: 0.2,
  eta: 0.3,
};

/** Other points, to measure groups on: 50 of each. */
const OTHERS = (() => {
  const next = math.normal(5);
  const [x, y, a] = [/** @type {number[][]} */ ([]), /** @type {number[]} */ ([]), /** @type {number[]} */ ([])];
  for (let i = 0; i < 200; i++) {
    y.push(i % 2);
    a.push((i >> 1) % 2);
    x.push([(2 * a[i] - 1) * 1.9 + 0.6 * next(), (2 * y[i] - 1) * 0.9 + 0.45 * next()]);
  }
  return { x, y, a };
})();

/**
 * One support set, what training on it gives, and where it would go.
 * @param {number[][]} support @param {number[][]} hard @param {{alpha: number, steps: number}} how
 */
function moment(support, hard, how) {
  const answer = math.hypergradient({ support, supportY: SUPPORT_Y, hard, hardY: HARD_Y, head: HEAD }, how);
  const guess = (/** @type {number[][]} */ x) => math.logits(x, answer.head).map(math.argmax);
  return {
    ...answer,
    support,
    length: math.norm(answer.gradient.flat()),
    right: guess(hard).filter((c, i) => c === HARD_Y[i]).length,
    groups: math.groupAccuracies(guess(OTHERS.x), OTHERS.y, OTHERS.a, 2),
  };
}

export default {
  /** @param {{model: import("./parts.js").Model, el: HTMLElement}} context */
  render(context) {
    const room = new Room(context, {
      name: "hsfm_by_hand",
      start: START,
      task:
        "Press *Play*. Edits move the eight support examples (dots; dark landbirds, light waterbirds) so that the " +
        "head trained on them (line) serves the hard set (crosses). " +
        "*When is the worst group best, and what do further edits do?* Then press Reset and drag " +
        "one dot outwards, then to the middle: *which arrow grows silent, which one loud?*",
      answer:
        "The worst group of 200 other points is best after some 35 edits. Further edits still lower the hard set's " +
        "loss, but the head now leans on the background the wrong way round, and the majority pays: a hard set of " +
        "minority examples never objects. An example that the head is sure of is silent: it neither teaches nor is " +
        "it moved. One in the middle, of which the head is unsure, gets most of the edit.",
    });
    const plane = room.plot({
      label: "Support and hard examples by background and bird", x: [-5.5, 5.5], y: [-4.5, 4.5],
      xTitle: "background (land ← → water)", yTitle: "bird (land ← → water)", square: true, kind: "wide",
    });
    const loss = room.plot({
      label: "Loss of the hard set by edit", x: [0, 40], y: [0, 3], xTitle: "edit", yTitle: "hard loss", height: 190,
    });
    const groups = room.plot({
      label: "Accuracy of groups by edit", x: [0, 40], y: [0, 104],
      xTitle: "edit", yTitle: "accuracy (%)", height: 190,
    });
    const colour = (/** @type {number} */ y) => COLOURS[/** @type {"landbird"} */ (CLASS[y])];
    const others = OTHERS.x.map(([x, y], i) => ({ x, y, colour: colour(OTHERS.y[i]), opacity: 0.28, size: 12 }));
    /** @type {ReturnType<typeof moment>[]} */
    let path = [];
    let from = "";
    /** The moments so far; only what is new is computed. */
    const follow = () => {
      const { support, hard, edits, steps, alpha, eta } = room.state;
      const key = JSON.stringify([support, hard, steps, alpha, eta]);
      if (key !== from) path = [];
      from = key;
      while (path.length <= edits) {
        const last = path.at(-1);
        const size = last?.length ? -eta / last.length : 0;
        const next = last ? last.support.map((h, i) => math.add(h, last.gradient[i], size)) : support;
        path.push(moment(next, hard, { alpha, steps }));
      }
      return path.slice(0, edits + 1);
    };
    const stop = room.player("Play", () => {
      room.set({ edits: Math.min(room.state.edits + 1, MOST) });
      return room.state.edits < MOST;
    });
    const edit = room.button("One edit", () => room.set({ edits: Math.min(room.state.edits + 1, MOST) }));
    const back = room.button("Back", () => room.set({ edits: Math.max(room.state.edits - 1, 0) }));
    room.slider("steps", "inner steps T", [1, 2, 3, 5, 7, 10, 15, 20, 30]);
    room.slider("alpha", "inner step α", [0.02, 0.05, 0.1, 0.2, 0.5, 1]);
    room.slider("eta", "length η of an edit", [0.1, 0.2, 0.3, 0.5, 1]);
    const tell = room.numbers({ edits: "edits", right: "hard examples right, of 6" });
    const tellLoss = room.numbers({ loss: "hard loss" });
    const tellGroups = room.numbers(
      { worst: "worst group", majority: "majority", minority: "minority" },
      { worst: COLOURS.ink, majority: COLOURS.majority, minority: COLOURS.minority },
    );

    room.open(() => {
      const { hard, edits, eta } = room.state;
      const moments = follow();
      const now = moments[edits];
      edit.disabled = edits === MOST;
      back.disabled = edits === 0;
      plane.marks("others", others);
      plane.lines("trails", SUPPORT_Y.map((y, i) => ({
        points: moments.map(({ support }) => pair(support[i])),
        colour: colour(y), width: 1.5, opacity: 0.7,
      })));
      const border = (/** @type {math.Head} */ head) => ({
        w: math.add(head.weight[1], head.weight[0], -1), b: head.bias[1] - head.bias[0],
      });
      plane.borders("heads", [
        { ...border(HEAD), colour: COLOURS.grey, dash: "3 4" },
        { ...border(now.head), colour: COLOURS.ink, width: 3 },
      ]);
      const voices = now.gradient.map((g) => (now.length ? math.norm(g) / now.length : 0));
      plane.arrows("arrows", now.support.map((h, i) => {
        const to = math.add(h, now.gradient[i], now.length ? (-4 * eta) / now.length : 0);
        return { from: pair(h), to: pair(to), colour: COLOURS.ink };
      }));
      const place = (/** @type {number[]} */ [x, y]) => `background ${shown(x, 1)}, bird ${shown(y, 1)}`;
      plane.handles([
        ...hard.map((/** @type {number[]} */ h, /** @type {number} */ i) => ({
          id: `hard-${i}`, x: h[0], y: h[1], colour: colour(HARD_Y[i]), shape: /** @type {const} */ ("cross"), size: 90,
          label: `hard example ${i + 1}, ${CLASS[HARD_Y[i]]}: ${place(h)}`,
          move: (/** @type {number} */ x, /** @type {number} */ y) => {
            stop();
            room.set({ hard: math.copy(room.state.hard).with(i, [x, y]) });
          },
        })),
        ...now.support.map((h, i) => ({
          id: `support-${i}`, x: h[0], y: h[1], colour: colour(SUPPORT_Y[i]), size: 50 + 130 * voices[i],
          label: `support example ${i + 1}, ${CLASS[SUPPORT_Y[i]]}: ${place(h)}, ` +
            `share of the edit ${percent(100 * voices[i])}`,
          move: (/** @type {number} */ x, /** @type {number} */ y) => {
            stop();
            room.set({ support: math.copy(path[room.state.edits].support).with(i, [x, y]), edits: 0 });
          },
        })),
      ]);

      const until = Math.max(40, edits);
      loss.about.x = groups.about.x = [0, until];
      loss.about.y = [0, Math.max(3, Math.ceil(Math.max(...moments.map((m) => m.loss))))];
      loss.fit();
      groups.fit();
      /** @param {(m: typeof now) => number} value @returns {[number, number][]} */
      const over = (value) => moments.map((m, k) => [k, value(m)]);
      loss.lines("curve", [{ points: over((m) => m.loss), colour: COLOURS.ink, width: 2.5 }]);
      loss.marks("now", [{ x: edits, y: now.loss, colour: COLOURS.ink, opacity: 1, size: 50 }]);
      groups.lines("curves", [
        { points: over((m) => m.groups.majority), colour: COLOURS.majority },
        { points: over((m) => m.groups.minority), colour: COLOURS.minority },
        { points: over((m) => m.groups.worst), colour: COLOURS.ink, width: 3 },
      ]);
      groups.marks("now", [{ x: edits, y: now.groups.worst, colour: COLOURS.ink, opacity: 1, size: 50 }]);
      tell({ edits, right: now.right }, (value) => shown(value, 0));
      tellLoss({ loss: now.loss }, shown);
      const { worst, majority, minority } = now.groups;
      tellGroups({ worst, majority, minority }, percent);
      return `After ${edits} edits: hard loss ${shown(now.loss)}, ${now.right} of 6 hard examples right; worst group ` +
        `${percent(worst)}, majority ${percent(majority)}, minority ${percent(minority)}.`;
    });
  },
};
