/**
 * Two cues (chapter 01): logistic regression on points that carry a label twice, as the bird and as the background.
 */

import * as math from "./math.js";
import { COLOURS, pair, percent, Room, shown } from "./parts.js";

const START = { bird: 1, background: 2, minority: 8, step: 0 };
const [TRAIN, TEST, STEPS, ALPHA] = [160, 400, 60, 0.5];
const NOTHING = { weight: [[0, 0], [0, 0]], bias: [0, 0] };

/** Unit noise, so that the same points follow the strengths. @param {number} n @param {number} seed */
function scatter(n, seed) {
  const next = math.normal(seed);
  return Array.from({ length: n }, () => [next(), next()]);
}

/**
 * Points of two classes by turns, the first `minority` with the other class's background.
 * @param {number[][]} noise @param {number} minority @param {number} bird strength of a cue: half the distance of its
 *   two means, in standard deviations @param {number} background
 */
function draw(noise, minority, bird, background) {
  const y = noise.map((_, i) => i % 2);
  const a = y.map((c, i) => (i < minority ? 1 - c : c));
  const x = noise.map(([u, v], i) => [background * (2 * a[i] - 1) + u, bird * (2 * y[i] - 1) + v]);
  return { x, y, a };
}

export default {
  /** @param {{model: import("./parts.js").Model, el: HTMLElement}} context */
  render(context) {
    const room = new Room(context, {
      name: "two_cues",
      start: START,
      task:
        "Each point has its class (dark landbird, light waterbird) in two cues. Press *Play* to train. Then drag the " +
        "square, the centre of waterbirds on water: sideways it changes the strength of the background, upwards that " +
        "of the bird. *Where does the minority of the test set (right, orange) fall below a coin? What lifts it?*",
      answer:
        "Below a coin it falls wherever the background is clearly the stronger cue and the minority rare, and deepest " +
        "in the first steps: the common cue is learned first. Time lifts it slowly, a stronger bird or more minority " +
        "examples lift it at once. With no minority example at all, time does not help. The majority hardly notices " +
        "any of this.",
    });
    const noise = scatter(TRAIN, 1);
    const others = scatter(TEST, 2);
    const plane = room.plot({
      label: "Training points by background and bird", x: [-5.5, 5.5], y: [-4.5, 4.5],
      xTitle: "background (land ← → water)", yTitle: "bird (land ← → water)", square: true, kind: "wide",
    });
    const curves = room.plot({
      label: "Accuracy on the test set by step", x: [0, STEPS], y: [0, 104], xTitle: "step of training",
      yTitle: "accuracy (%)", height: 300,
    });
    room.player("Play", () => {
      room.set({ step: room.state.step >= STEPS ? 0 : room.state.step + 1 });
      return room.state.step < STEPS;
    });
    room.slider("step", "step", Array.from({ length: STEPS + 1 }, (_, t) => t));
    room.slider("minority", `minority, of ${TRAIN}`, [0, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80]);
    const tell = room.numbers(
      { majority: "majority", minority: "minority", worst: "worst group" },
      { majority: COLOURS.majority, minority: COLOURS.minority, worst: COLOURS.ink },
    );
    const tellStep = room.numbers({ above: "minority above a coin from step" });
    const tellStrength = room.numbers({ rho: "ρ", bird: "bird", background: "background" });
    let from = "";
    /** @type {math.Head[]} */
    let path = [];
    /** @type {ReturnType<typeof math.groupAccuracies>[]} */
    let found = [];

    room.open(() => {
      const { bird, background, minority, step } = room.state;
      const seen = draw(noise, minority, bird, background);
      const key = JSON.stringify([bird, background, minority]);
      if (key !== from) {
        const test = draw(others, TEST / 2, bird, background);
        path = math.train(seen.x, seen.y, NOTHING, { alpha: ALPHA, steps: STEPS });
        found = path.map((head) => {
          const w = math.add(head.weight[1], head.weight[0], -1);
          const b = head.bias[1] - head.bias[0];
          return math.groupAccuracies(test.x.map((x) => (math.dot(w, x) + b > 0 ? 1 : 0)), test.y, test.a, 2);
        });
        from = key;
      }
      plane.marks("points", seen.x.map(([x, y], i) => ({
        x, y, colour: seen.y[i] ? COLOURS.waterbird : COLOURS.landbird, opacity: i < minority ? 1 : 0.45,
        size: i < minority ? 60 : 30,
      })));
      const head = path[step];
      const w = math.add(head.weight[1], head.weight[0], -1);
      plane.borders("head", step ? [{ w, b: head.bias[1] - head.bias[0], colour: COLOURS.ink, width: 3 }] : []);
      plane.handles([{
        id: "centre", x: background, y: bird, colour: COLOURS.ink, shape: "square", size: 150, hollow: true,
        label: `centre of waterbirds on water: background ${shown(background, 1)}, bird ${shown(bird, 1)}`,
        move: (x, y) => room.set({ background: Math.max(0, x), bird: Math.max(0, y) }),
      }]);
      curves.lines("coin", [{ points: [[0, 50], [STEPS, 50]], colour: COLOURS.grey, dash: "3 4" }]);
      /** @param {(now: typeof found[0]) => number} value */
      const over = (value) => found.map((now, t) => pair([t, value(now)]));
      curves.lines("curves", [
        { points: over((now) => now.majority), colour: COLOURS.majority, width: 2.5 },
        { points: over((now) => now.minority), colour: COLOURS.minority, width: 3 },
        { points: over((now) => now.worst), colour: COLOURS.ink, dash: "5 3" },
      ]);
      curves.lines("now", [{ points: [[step, 0], [step, 104]], colour: COLOURS.ink, width: 1.5, opacity: 0.6 }]);
      const now = found[step];
      tell({ majority: now.majority, minority: now.minority, worst: now.worst }, percent);
      const above = found.findIndex(({ minority }, t) => t > 0 && minority > 50);
      tellStep({ above: above < 0 ? NaN : above }, (value) => (Number.isNaN(value) ? "none" : shown(value, 0)));
      tellStrength({ rho: 1 - minority / TRAIN, bird, background }, shown);
      return `${minority} minority examples of ${TRAIN}; strength of the bird ${shown(bird, 1)}, of the background ` +
        `${shown(background, 1)}. At step ${step} the majority is right in ${percent(now.majority)}, the minority in ` +
        `${percent(now.minority)}, the worst group in ${percent(now.worst)}; ` +
        (above < 0 ? "the minority stays below a coin." : `the minority is above a coin from step ${above}.`);
    });
  },
};
