/**
 * See the edit (chapters 13 to 15): an embedding of the tiny CLIP, moved by hand, by words or by HSFM, and drawn.
 *
 * The two networks run in the page, once the reader has asked for them. HSFM begins where chapter 15 begins: the same
 * scenes, coordinates and head. The support set is the reader's.
 */

import { ATTRIBUTES, caption, Models, SPOKEN, VALUES } from "./birds.js";
import { decoder } from "./drawing.js";
import { Engine } from "./engine.js";
import * as math from "./math.js";
import { element, percent, Room, shown } from "./parts.js";
import { sheet, shelf, tile } from "./tiles.js";

/** @typedef {import("./birds.js").Reading} Reading */

const FILE = "see_the_edit";
const MEGABYTES = 13; // to load: a test adds up the files
const SHELF = 24; // scenes to choose from: twelve landbirds, then twelve waterbirds
const HSFM = { alpha: 1, edits: 15, hard: 64, clip: 10 }; // of chapter 15
const SLIDERS = { background: "land → water", bird: "landbird → waterbird", facing: "left → right", size: "small → big" };
const WORDS = /** @type {(keyof typeof SLIDERS)[]} */ (Object.keys(SLIDERS));
const ROUNDS = Array.from({ length: 13 }, (_, i) => i);
const AMOUNTS = Array.from({ length: 21 }, (_, i) => (i - 10) / 10);
const START = {
  from: "scene",
  scene: 0,
  ...{ say_size: "", say_colour: "3", say_bird: "1", say_facing: "", say_background: "1" },
  support: [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 16, 17, 18, 19],
  rounds: 0,
  steps: 15,
  eta: 0.02,
  ...{ background: 0, bird: 0, facing: 0, size: 0, colour: "3", amount: 0 },
  noise: 1,
  draws: 10,
};

/** What stands in the file beside the networks. @param {Engine} engine */
async function stored(engine) {
  const e = engine.rows("e");
  const space = new math.Space([...engine.stored.mean.data], engine.rows("directions"));
  return {
    e,
    space,
    attributes: engine.rows("attributes").map((row) => {
      return /** @type {Reading} */ (Object.fromEntries(ATTRIBUTES.map((name, i) => [name, row[i]])));
    }),
    u: e.slice(0, SHELF).map((row) => space.to(row)),
    head: { weight: engine.rows("weight"), bias: [...engine.stored.bias.data] },
    val: { x: engine.rows("val"), y: [...engine.stored.val_y.data] },
    valA: [...engine.stored.val_a.data],
    scene: await sheet(/** @type {Uint8Array} */ (engine.stored.scenes.data)),
  };
}

/** @typedef {Awaited<ReturnType<typeof stored>>} Stored */
/** @typedef {{support: math.Matrix, head: math.Head}} Edited */

/** The rounds of HSFM so far; only what is new is computed. @param {Stored} data */
function rounds({ space, head, val }) {
  /** @type {Edited[]} */
  let path = [];
  /** @type {ReturnType<typeof math.hsfm> | undefined} */
  let running;
  let from = "";
  /**
   * @param {math.Matrix} support @param {number[]} supportY @param {number} n
   * @param {{steps: number, eta: number}} how
   */
  return (support, supportY, n, { steps, eta }) => {
    const key = JSON.stringify([support, supportY, steps, eta]);
    if (key !== from || !running) {
      const project = (/** @type {number[]} */ u) => space.project(u);
      running = math.hsfm({ support, supportY, ...val, head }, { ...HSFM, steps, eta, project });
      path = [{ support: support.map(project), head }];
      from = key;
    }
    while (path.length <= n) path.push(running.next().value);
    return { now: path[n], all: path };
  };
}

export default {
  /** @param {{model: import("./parts.js").Model, el: HTMLElement}} context */
  render(context) {
    const room = new Room(context, {
      name: "see_the_edit",
      start: START,
      task:
        "HSFM edits the embeddings of a support set so that a head trained on them does well on hard examples. " +
        "Move *rounds* to 2 and watch the picture of the scene that you look at. *What does the edit take away, what " +
        "does it leave? Does a random move as long do the same?* Go on to 4 rounds: *is the head best where the " +
        "pictures are?* Look at other scenes, choose another support set, or move the embedding by words: *how far " +
        "until the picture flips?*",
      answer:
        "After two rounds most scenes of the support set have lost the background that goes with their bird, and keep " +
        "the bird; random moves as long leave most backgrounds alone. With more rounds fewer backgrounds and more " +
        "birds are read differently, and yet it is then that the head, which these edits are for, is good: its worst " +
        "group falls before it rises. So a picture of an edit shows what one stopped at, not what the edit is worth. " +
        "Words change one thing first, and the picture flips suddenly; far out other things go along.",
    });
    room.beforehand(context, MEGABYTES, async () => {
      const engine = new Engine();
      await engine.open(FILE, context.model);
      const models = new Models(engine);
      await models.learnWords();
      show(room, models, await stored(engine));
    });
  },
};

/** @param {Room} room @param {Models} models @param {Stored} data */
function show(room, models, data) {
  const { space, e, attributes, u } = data;
  const tiles = element("div", { class: "tiles" });
  const picture = {
    scene: tile(tiles, "scene", "Begins with"),
    before: tile(tiles, "before", "Drawn as it is"),
    after: tile(tiles, "after", "Drawn after the move"),
    random: tile(tiles, "random", "Random move as long"),
    nearest: tile(tiles, "nearest", "Nearest real scene"),
  };
  room.plots.append(tiles);
  const tick = (/** @type {number} */ i, /** @type {boolean} */ on) => {
    const others = room.state.support.filter((/** @type {number} */ j) => j !== i);
    room.set({ support: on ? [...others, i].sort((a, b) => a - b) : others });
  };
  const edits = room.group("Edits of HSFM");
  room.slider("rounds", "rounds of HSFM", ROUNDS, (n) => `${n} of ${HSFM.edits} edits`);
  room.slider("steps", "inner steps T", [1, 2, 5, 10, 15, 20, 30]);
  room.slider("eta", "size η of an edit", [0.001, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05]);
  const mark = shelf(edits, {
    legend: "Training scenes: press one to look at it; ticked ones are the support set.",
    scenes: attributes.slice(0, SHELF).map((it, i) => ({ pixels: data.scene(i), label: `${i + 1}, ${caption(it)}` })),
    press: (i) => room.set({ scene: i, from: "scene" }),
    tick,
  });
  room.group("Moved by words");
  for (const name of WORDS) room.slider(name, SLIDERS[name], AMOUNTS, (value) => shown(value, 1));
  room.choice("colour", "a colour", Object.fromEntries(VALUES.colour.map((word, i) => [i, word])));
  room.slider("amount", "towards it", AMOUNTS.slice(10), (value) => shown(value, 1));
  room.group("Begin with, and draw");
  room.choice("from", "begin with", { scene: "the scene", caption: "a caption:" });
  const before = room.controls.childElementCount;
  for (const name of SPOKEN) {
    const words = Object.fromEntries(VALUES[name].map((word, i) => [i, word]));
    room.choice(`say_${name}`, name, { "": "unsaid", ...words });
  }
  const spoken = [...room.controls.children].slice(before);
  room.choice("draws", "steps of the decoder", { 5: "5", 10: "10", 20: "20" });
  room.button("Other noise", () => room.set({ noise: room.state.noise + 1 }));
  const tellSet = room.numbers({
    "edit-background": "background flips, edits",
    "random-background": "by random moves",
    "edit-bird": "bird flips, edits",
    "edit-colour": "colour flips, edits",
  });
  const tellMove = room.numbers({ length: "length of this move", along: "cosine with its own background" });
  const tellHead = room.numbers({ worst: "the head's worst group" });
  const worst = (/** @type {math.Head} */ it) => {
    const guess = math.logits(data.val.x, it).map(math.argmax);
    return math.groupAccuracies(guess, data.val.y, data.valA, 2).worst;
  };
  const follow = rounds(data);
  const draw = decoder(room, models, picture);
  /** @type {Map<string, number[]>} */
  const heard = new Map();

  room.open(() => {
    const { state } = room;
    const fromCaption = state.from === "caption";
    for (const it of spoken) it.toggleAttribute("hidden", !fromCaption);
    const said = SPOKEN.filter((name) => state[`say_${name}`] !== "");
    const text = caption(Object.fromEntries(said.map((name) => [name, Number(state[`say_${name}`])])));
    if (fromCaption && !heard.has(text)) {
      models.texts([text]).then(([embedding]) => {
        heard.set(text, embedding);
        room.show();
      });
    }
    const scene = Math.min(SHELF - 1, Math.max(0, Math.round(Number(state.scene)) || 0));
    const told = fromCaption ? (heard.get(text) ?? e[scene]) : undefined;
    // The support set: ticked scenes and what is looked at, which comes last.
    const rows = state.support.filter((/** @type {number} */ i) => fromCaption || i !== scene);
    const label = told ? models.read(told).bird : attributes[scene].bird;
    const support = [...rows.map((/** @type {number} */ i) => u[i]), told ? space.to(told) : u[scene]];
    const supportY = [...rows.map((/** @type {number} */ i) => attributes[i].bird), label];
    const { now, all } = follow(support, supportY, state.rounds, { steps: state.steps, eta: state.eta });

    const ends = now.support.map((h, i) => ({ from: space.back(all[0].support[i]), to: space.back(h) }));
    const mine = ends[ends.length - 1];
    const start = told ?? mine.from;
    let moved = math.add(math.add(start, mine.to), mine.from, -1);
    for (const name of WORDS) moved = math.add(moved, models.direction(name), state[name]);
    moved = math.unit(math.add(moved, models.towards("colour", Number(state.colour)), state.amount));
    const move = math.add(moved, start, -1);
    const length = math.norm(move);
    const next = math.normal(state.noise);
    const random = length > 1e-6 ? math.randomMove(space, start, length, next) : start;

    const own = (2 * label - 1) * math.cosine(move, models.direction("background"));
    const pairs = ends.map(({ from, to }) => {
      const far = math.norm(math.add(to, from, -1));
      const there = far > 1e-6 ? math.randomMove(space, from, far, next) : from;
      return [from, to, there].map((embedding) => models.read(embedding));
    });
    const flipped = (/** @type {"bird" | "background" | "colour"} */ name, /** @type {number} */ which) =>
      (100 * pairs.filter((read) => read[0][name] !== read[which][name]).length) / pairs.length;
    tellSet({
      "edit-background": flipped("background", 1),
      "random-background": flipped("background", 2),
      "edit-bird": flipped("bird", 1),
      "edit-colour": flipped("colour", 1),
    }, percent);
    tellMove({ length, along: length > 1e-6 ? own : 0 }, shown);
    tellHead({ worst: worst(now.head) }, percent);

    const closeness = e.map((row) => math.dot(row, moved));
    const nearest = math.argmax(closeness);
    mark(fromCaption ? -1 : scene, state.support);
    picture.scene.draw(fromCaption ? null : data.scene(scene));
    picture.scene.tell(fromCaption ? `the words “${text}”` : caption(attributes[scene]));
    picture.nearest.draw(data.scene(nearest));
    picture.nearest.tell(caption(attributes[nearest]));
    draw({ before: start, after: moved, random });
    const reads = (/** @type {number[]} */ embedding) => caption(models.read(embedding));
    const begun = fromCaption ? `the words ${text}` : caption(attributes[scene]);
    return `Begun with ${begun}. ${state.rounds} rounds of HSFM and the words move it by ${shown(length)}: ` +
      `CLIP reads the embedding as ${reads(moved)}, after a random move as long as ${reads(random)}. The nearest ` +
      `real scene is ${caption(attributes[nearest])}. In the support set the background flips in ` +
      `${percent(flipped("background", 1))}, by random moves in ${percent(flipped("background", 2))}.`;
  });
}
