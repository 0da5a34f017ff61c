/**
 * Move the bird (chapter 00): a bird to drag, a background to slide under it, and two networks that answer at once.
 *
 * Both are chapter 00's small ResNet: one trained where the background gives the bird away, one where it does not.
 */

import { SIDE } from "./birds.js";
import { Engine } from "./engine.js";
import { COLOURS, element, percent, Room, shown } from "./parts.js";
import { canvasOf, STYLE } from "./tiles.js";

const FILE = "move_the_bird";
const MEGABYTES = 6;
const BIRDS = ["landbird 1", "landbird 2", "waterbird 1", "waterbird 2"];
const REACH = 3 * SIDE; // how far the strip of four backgrounds slides
const STOPS = Array.from({ length: 37 }, (_, i) => (i * REACH) / 36);
const SHIFTS = Array.from({ length: 25 }, (_, i) => i - 12);
const NETWORKS = /** @type {const} */ (["biased", "fair"]);
const PLACES = ["land", "water", "land", "water"];
const START = { bird: 2, slide: SIDE, right: 0, down: 0 };

export default {
  /** @param {{model: import("./parts.js").Model, el: HTMLElement}} context */
  render(context) {
    const room = new Room(context, {
      name: "move_the_bird",
      start: START,
      task:
        "Drag the bird, or the background under it. Two networks say how sure they are of a waterbird: one learned " +
        "from scenes in which 95 of 100 birds are where they belong, the other from scenes in which birds are " +
        "anywhere. *What does the first one look at?*",
      answer:
        "At the background. As water slides under the bird, the first network's answer turns to waterbird and back, " +
        "whatever the bird: on its test scenes it calls none of the minority by its name. The second answers by the " +
        "bird, and the background moves it far less.",
    });
    room.beforehand(context, MEGABYTES, async () => {
      const engine = new Engine();
      await engine.open(FILE, context.model);
      show(room, engine);
    });
  },
};

/** @param {Room} room @param {Engine} engine */
function show(room, engine) {
  const stage = canvasOf();
  stage.setAttribute("class", "stage");
  const place = element("div", { class: "plot" }, element("style", {}, STYLE), stage);
  room.plots.append(place);
  const pen = /** @type {CanvasRenderingContext2D} */ (stage.getContext("2d", { willReadFrequently: true }));
  const strip = new Uint8ClampedArray(engine.stored.strip.data);
  const birds = BIRDS.map((_, i) => new Uint8ClampedArray(engine.stored.birds.data.slice(i * 9216, (i + 1) * 9216)));
  const curve = room.plot({
    label: "Probability of a waterbird by place on the strip", x: [0, REACH], y: [0, 104], height: 240,
    xTitle: "background (land, water, land, water)", yTitle: "waterbird (%)", xText: () => "",
  });
  room.choice("bird", "bird", Object.fromEntries(BIRDS.map((name, i) => [i, name])));
  room.slider("slide", "background", STOPS, (value) => where(value));
  room.slider("right", "bird to the right", SHIFTS);
  room.slider("down", "bird down", SHIFTS);
  room.player("Slide", () => {
    room.set({ slide: Math.min(REACH, room.state.slide + 2) });
    return room.state.slide < REACH;
  }, 50);
  const tell = room.numbers(
    { biased: "waterbird, says the biased network", fair: "says the fair one" },
    { biased: COLOURS.minority, fair: COLOURS.good },
  );
  follow(stage, room);
  const answers = asker(room, engine, (state) => compose(strip, birds[Number(state.bird)], state));
  room.open(() => {
    const { state } = room;
    pen.putImageData(new ImageData(compose(strip, birds[Number(state.bird)], state), SIDE, SIDE), 0, 0);
    stage.setAttribute("aria-label", `${BIRDS[state.bird]}, ${where(state.slide)}, moved right by ${state.right} and ` +
      `down by ${state.down} pixels`);
    const { now, path } = answers();
    curve.lines("curves", NETWORKS.map((name) => ({
      points: path?.[name].map((p, i) => /** @type {[number, number]} */ ([STOPS[i], 100 * p])) ?? [],
      colour: name === "biased" ? COLOURS.minority : COLOURS.good, width: 2.5,
    })));
    curve.lines("here", [{ points: [[state.slide, 0], [state.slide, 104]], colour: COLOURS.ink, dash: "3 4" }]);
    if (now) tell({ biased: 100 * now.biased, fair: 100 * now.fair }, percent);
    return `A ${BIRDS[state.bird]} ${where(state.slide)}: the biased network says waterbird with ` +
      `${now ? percent(100 * now.biased) : "…"}, the fair one with ${now ? percent(100 * now.fair) : "…"}.`;
  });
}

/** What lies under the middle of the view. @param {number} slide */
const where = (slide) => `on ${PLACES[Math.min(3, Math.floor((slide + SIDE / 2) / SIDE))]} (${shown(slide, 0)})`;

/**
 * The scene: a window of the strip, and the bird on it.
 * @param {Uint8ClampedArray} strip @param {Uint8ClampedArray} bird @param {import("./parts.js").State} state
 */
function compose(strip, bird, { slide, right, down }) {
  const pixels = new Uint8ClampedArray(4 * SIDE * SIDE);
  const from = Math.min(REACH, Math.max(0, Math.round(slide)));
  for (let row = 0; row < SIDE; row++) {
    for (let column = 0; column < SIDE; column++) {
      const [y, x] = [row - Math.round(down), column - Math.round(right)];
      const at = 4 * (y * SIDE + x);
      const inside = x >= 0 && x < SIDE && y >= 0 && y < SIDE && bird[at + 3] > 0;
      const [source, start] = inside ? [bird, at] : [strip, 4 * (row * 4 * SIDE + from + column)];
      pixels.set(source.subarray(start, start + 4), 4 * (row * SIDE + column));
    }
  }
  return pixels;
}

/**
 * Asks both networks about what is shown, and about all places of the strip; the newest question first.
 * @param {Room} room @param {Engine} engine @param {(state: import("./parts.js").State) => Uint8ClampedArray} scene
 */
function asker(room, engine, scene) {
  /** @typedef {Record<(typeof NETWORKS)[number], number>} Now */
  /** @type {Map<string, any>} */
  const known = new Map();
  let busy = false;
  /** @param {import("./parts.js").State[]} states */
  const ask = async (states) => {
    const data = new Float32Array(states.length * 3 * SIDE * SIDE);
    states.forEach((state, n) => {
      const pixels = scene(state);
      const from = n * 3 * SIDE * SIDE;
      for (let i = 0; i < 3 * SIDE * SIDE; i++) {
        data[from + i] = pixels[4 * (i % (SIDE * SIDE)) + Math.floor(i / (SIDE * SIDE))];
      }
    });
    const feeds = { x: { data, dims: [states.length, 3, SIDE, SIDE] } };
    const [biased, fair] = await Promise.all(NETWORKS.map((name) => engine.run(name, feeds)));
    return { biased: [...biased], fair: [...fair] };
  };
  const keys = () => {
    const { bird, right, down, slide } = room.state;
    return { here: JSON.stringify([bird, right, down, slide]), all: JSON.stringify([bird, right, down]) };
  };
  const work = async () => {
    if (busy) return;
    busy = true;
    for (;;) {
      const { here, all } = keys();
      const begin = performance.now();
      if (!known.has(here)) {
        const { biased, fair } = await ask([{ ...room.state }]);
        known.set(here, { biased: biased[0], fair: fair[0] });
        room.el.dataset.frame = String(performance.now() - begin);
      } else if (!known.has(all)) {
        known.set(all, await ask(STOPS.map((slide) => ({ ...room.state, slide }))));
      } else break;
      room.show();
    }
    busy = false;
  };
  return () => {
    const { here, all } = keys();
    room.el.dataset.answered = String(known.has(here) && known.has(all));
    if (!known.has(here) || !known.has(all)) setTimeout(work);
    const path = /** @type {Record<keyof Now, number[]> | undefined} */ (known.get(all));
    return { now: /** @type {Now | undefined} */ (known.get(here)), path };
  };
}

/** A hand on the stage: on the bird it moves the bird, beside it the background. @param {HTMLElement} stage
 * @param {Room} room */
function follow(stage, room) {
  /** @type {{x: number, y: number, state: import("./parts.js").State, bird: boolean} | undefined} */
  let from;
  const scale = () => SIDE / stage.getBoundingClientRect().width;
  const limited = (/** @type {number} */ value) => Math.max(-12, Math.min(12, Math.round(value)));
  stage.addEventListener("pointerdown", (event) => {
    const box = stage.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) * scale(), (event.clientY - box.top) * scale()];
    const middle = Math.hypot(x - SIDE / 2 - room.state.right, y - SIDE * 0.6 - room.state.down);
    from = { x: event.clientX, y: event.clientY, state: { ...room.state }, bird: middle < 14 };
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [dx, dy] = [(event.clientX - from.x) * scale(), (event.clientY - from.y) * scale()];
    if (from.bird) room.set({ right: limited(from.state.right + dx), down: limited(from.state.down + dy) });
    else room.set({ slide: Math.max(0, Math.min(REACH, Math.round(from.state.slide - dx))) });
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => (from = undefined));
}
