/**
 * The weight of a query (chapter 05): a few new labels against a hundred old ones, which a head has learned already.
 */

import * as math from "./math.js";
import { COLOURS, pair, percent, Room, shown } from "./parts.js";

const START = { queries: 4, weight: 1, place: [-2, 1], step: 0 };
const [OLD, TEST, STEPS, ALPHA] = [100, 400, 100, 0.5];

const NOTHING = { weight: [[0, 0], [0, 0]], bias: [0, 0] };

/** Landbirds and waterbirds by turns. @param {number} n @param {number} seed @param {number[]} spread */
function scatter(n, seed, spread) {
  const next = math.normal(seed);
  return Array.from({ length: n }, (_, i) => ({ y: i % 2, x: [spread[0] * next(), spread[1] * next()] }));
}

/** @param {number} y @param {number[]} centre of waterbirds; landbirds lie opposite @param {number[]} noise */
const placed = (y, centre, noise) => math.add(noise, centre, 2 * y - 1);

const old = scatter(OLD, 4, [0.8, 0.6]);
const [OLD_X, OLD_Y] = [old.map(({ x, y }) => placed(y, [2, 1], x)), old.map(({ y }) => y)];
const test = scatter(TEST, 77, [0.8, 0.6]);
const TEST_Y = test.map(({ y }) => y);
const TEST_A = test.map(({ y }, i) => ((i >> 1) % 2 ? y : 1 - y));
const TEST_X = test.map(({ x, y }, i) => math.add(x, [2 * (2 * TEST_A[i] - 1), 2 * y - 1]));
const asked = scatter(40, 9, [0.5, 0.5]);

/** The length of a gradient. @param {math.Head} g */
const length = ({ weight, bias }) => math.norm([...weight.flat(), ...bias]);

export default {
  /** @param {{model: import("./parts.js").Model, el: HTMLElement}} context */
  render(context) {
    const room = new Room(context, {
      name: "weight_of_a_query",
      start: START,
      task:
        "A head (dotted) has learned a hundred old labels (small dots) and leans on the background. Press *Play* to go " +
        "on training with a few queried minority labels (large). *Are four queries drowned? What does as much as more " +
        "of them: more weight, more time?* And drag the square: *what if the queries lie where the head is right?*",
      answer:
        "They are not drowned: 4 in 104 labels have most of the gradient, since the old labels, being fitted, say next " +
        "to nothing. They are only slow. What counts first is number times weight: 4 queries of weight 8, 8 of 4 and " +
        "32 of 1 move the line about as fast; in the end more labels do better than more weight. Time alone does part " +
        "of it. Queries where the head is right have no such gradient and move nothing.",
    });
    const first = math.train(OLD_X, OLD_Y, NOTHING, { alpha: ALPHA, steps: 200 })[200];
    const plane = room.plot({
      label: "Old labels and queries by background and bird", x: [-4.6, 4.6], y: [-3.4, 3.4],
      xTitle: "background (land ← → water)", yTitle: "bird (land ← → water)", square: true, kind: "wide",
    });
    const curves = room.plot({
      label: "Accuracy on the test set by step", x: [0, STEPS], y: [0, 104], xTitle: "step of further training",
      yTitle: "accuracy (%)", height: 290,
    });
    room.player("Play", () => {
      room.set({ step: room.state.step >= STEPS ? 0 : room.state.step + 2 });
      return room.state.step < STEPS;
    });
    room.slider("queries", "queries", [1, 2, 4, 8, 16, 32, 40]);
    room.slider("weight", "weight of each", [1, 2, 4, 8, 16, 32]);
    room.slider("step", "step", Array.from({ length: STEPS / 2 + 1 }, (_, t) => 2 * t));
    const tell = room.numbers({ labels: "share of the labels", weighed: "of the weight", gradient: "of the gradient" });
    const tellGroups = room.numbers(
      { majority: "majority", minority: "minority", worst: "worst group", turned: "line turned by" },
      { majority: COLOURS.majority, minority: COLOURS.minority, worst: COLOURS.ink },
    );
    const oldDots = OLD_X.map(([x, y], i) => ({
      x, y, colour: OLD_Y[i] ? COLOURS.waterbird : COLOURS.landbird, opacity: 0.5, size: 24,
    }));
    /** @param {math.Head} head */
    const border = (head) => ({
      w: math.add(head.weight[1], head.weight[0], -1), b: head.bias[1] - head.bias[0],
    });
    let from = "";
    /** @type {math.Head[]} */
    let path = [];
    /** @type {ReturnType<typeof math.groupAccuracies>[]} */
    let found = [];
    let shares = { labels: 0, weighed: 0, gradient: 0 };

    room.open(() => {
      const { queries, weight, place, step } = room.state;
      const few = asked.slice(0, queries);
      const [x, y] = [few.map((one) => placed(one.y, place, one.x)), few.map((one) => one.y)];
      const key = JSON.stringify([queries, weight, place]);
      if (key !== from) {
        from = key;
        const all = OLD + queries * weight;
        const weights = [...OLD_Y.map(() => 1 / all), ...y.map(() => weight / all)];
        path = math.train([...OLD_X, ...x], [...OLD_Y, ...y], first, { alpha: ALPHA, steps: STEPS, weights });
        found = path.map((head) => {
          const { w, b } = border(head);
          return math.groupAccuracies(TEST_X.map((z) => (math.dot(w, z) + b > 0 ? 1 : 0)), TEST_Y, TEST_A, 2);
        });
        const ours = length(math.lossAndGradient(x, y, first, weights.slice(OLD)).gradient);
        const theirs = length(math.lossAndGradient(OLD_X, OLD_Y, first, weights.slice(0, OLD)).gradient);
        const [labels, weighed] = [queries / (OLD + queries), (queries * weight) / all];
        shares = { labels, weighed, gradient: ours / (ours + theirs) };
      }
      plane.marks("old", oldDots);
      plane.marks("queries", x.map(([u, v], i) => ({
        x: u, y: v, colour: y[i] ? COLOURS.waterbird : COLOURS.landbird, opacity: 1, size: 60 + 12 * weight,
      })));
      plane.borders("heads", [
        { ...border(first), colour: COLOURS.grey, dash: "3 4" },
        { ...border(path[step]), colour: COLOURS.ink, width: 3 },
      ]);
      plane.handles([{
        id: "place", x: place[0], y: place[1], colour: COLOURS.ink, shape: "square", size: 150, hollow: true,
        label: `where the queried waterbirds lie: background ${shown(place[0], 1)}, bird ${shown(place[1], 1)}`,
        move: (u, v) => room.set({ place: [u, v] }),
      }]);
      /** @param {(now: typeof found[0]) => number} value */
      const over = (value) => found.map((now, t) => pair([t, value(now)]));
      curves.lines("curves", [
        { points: over((now) => now.majority), colour: COLOURS.majority, width: 2.5 },
        { points: over((now) => now.minority), colour: COLOURS.minority, width: 3 },
        { points: over((now) => now.worst), colour: COLOURS.ink, dash: "5 3" },
        { points: [[step, 0], [step, 104]], colour: COLOURS.ink, width: 1.5, opacity: 0.6 },
      ]);
      tell(shares, (value) => percent(100 * value));
      const { majority, minority, worst } = found[step];
      tellGroups({ majority, minority, worst }, percent);
      const [was, is] = [border(first).w, border(path[step]).w].map((w) => Math.atan2(w[1], w[0]));
      const turned = (Math.abs(is - was) * 180) / Math.PI;
      tellGroups({ turned }, (value) => `${shown(value, 0)}°`);
      return `${queries} queries of weight ${weight}: ${percent(100 * shares.labels)} of the labels, ` +
        `${percent(100 * shares.gradient)} of the gradient. After ${step} steps the line has turned by ` +
        `${shown(turned, 0)} degrees; majority ${percent(majority)}, minority ${percent(minority)}.`;
    });
  },
};
