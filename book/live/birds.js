/** Birdscapes as the page meets them: their words, what the tiny CLIP reads, and how the tiny unCLIP draws. */

import * as math from "./math.js";

/** @typedef {import("./engine.js").Engine} Engine */
/** @typedef {"bird" | "background" | "colour" | "facing" | "size"} Attribute */
/** @typedef {Record<Attribute, number>} Reading */
/** @typedef {Uint8ClampedArray<ArrayBuffer>} Pixels of a canvas, (48, 48, 4) */

/** The values of each attribute, in the order of `caml_core.data.scenery.Attributes`. */
export const VALUES = {
  bird: ["landbird", "waterbird"],
  background: ["land", "water"],
  colour: ["white", "black", "grey", "red", "orange", "yellow", "pink", "purple"],
  facing: ["left", "right"],
  size: ["small", "big"],
};
export const ATTRIBUTES = /** @type {Attribute[]} */ (Object.keys(VALUES));
export const SPOKEN = /** @type {const} */ (["size", "colour", "bird", "facing", "background"]); // as captions go
export const SIDE = 48; // pixels of a scene
export const GUIDANCE = 3;
const [CHANNELS, FOLDED, FOLD] = [27, 16, 3];
const CONTEXT = 12;

/** A caption that names some attributes, as `caml_core.data.birdscapes.caption`. @param {Partial<Reading>} said */
export function caption(said) {
  const value = (/** @type {Attribute} */ name) => {
    const i = said[name];
    return i === undefined ? [] : [VALUES[name][i]];
  };
  const words = [...value("size"), ...value("colour"), ...(said.bird === undefined ? ["bird"] : value("bird"))];
  if (said.facing !== undefined) words.push("facing", ...value("facing"));
  if (said.background !== undefined) words.push("on", ...value("background"));
  return `${"aeiou".includes(words[0][0]) ? "an" : "a"} ${words.join(" ")}`;
}

/** For each value of an attribute texts that name it beside all values of the rest. @param {Attribute} asked */
export function prompts(asked) {
  const said = ATTRIBUTES.filter((name) => ["bird", "background", "colour", asked].includes(name));
  return VALUES[asked].map((_, value) =>
    said.reduce(
      (/** @type {Partial<Reading>[]} */ all, name) =>
        all.flatMap((one) =>
          (name === asked ? [value] : VALUES[name].map((_, i) => i)).map((i) => ({ ...one, [name]: i })),
        ),
      [{}],
    ),
  );
}

/** The tiny CLIP and the tiny unCLIP. */
export class Models {
  /** @param {Engine} engine with the graphs of `book/engines.py` */
  constructor(engine) {
    this.engine = engine;
    this.vocabulary = engine.notes.words.split(" ");
    /** @type {Record<string, number[][]>} */
    this.centres = {};
  }

  /** Embeddings of texts. @param {string[]} texts @returns {Promise<number[][]>} */
  async texts(texts) {
    const data = new Int32Array(texts.length * CONTEXT);
    texts.forEach((text, i) =>
      ["<start>", ...text.split(" "), "<end>"].forEach((word, j) => {
        data[i * CONTEXT + j] = this.vocabulary.indexOf(word) + 1;
      }),
    );
    return split(await this.engine.run("texts", { words: { data, dims: [texts.length, CONTEXT] } }), texts.length);
  }

  /** Where the texts of each value of each attribute have their middle. */
  async learnWords() {
    for (const name of ATTRIBUTES) {
      const groups = prompts(name).map((group) => group.map(caption));
      const e = await this.texts(groups.flat());
      this.centres[name] = groups.map((group, v) => {
        const some = e.slice(v * group.length, (v + 1) * group.length);
        return math.unit(some[0].map((_, d) => some.reduce((sum, row) => sum + row[d], 0)));
      });
    }
  }

  /** From one value of an attribute to another, of length 1. @param {Attribute} name */
  direction(name, from = 0, to = 1) {
    return math.unit(math.add(this.centres[name][to], this.centres[name][from], -1));
  }

  /** From all other values to one. @param {Attribute} name @param {number} to */
  towards(name, to) {
    const centres = this.centres[name];
    const others = centres[0].map((_, d) => centres.reduce((sum, c, i) => sum + (i === to ? 0 : c[d]), 0));
    return math.unit(math.add(centres[to], others, -1 / (centres.length - 1)));
  }

  /** What an embedding says, zero-shot. @param {number[]} e @returns {Reading} */
  read(e) {
    const entries = ATTRIBUTES.map((name) => [name, math.argmax(this.centres[name].map((c) => math.dot(c, e)))]);
    return Object.fromEntries(entries);
  }

  /** The embedding of a picture. @param {Pixels} pixels */
  async embed(pixels) {
    const data = new Float32Array(3 * SIDE * SIDE);
    data.forEach((_, i) => (data[i] = pixels[4 * (i % (SIDE * SIDE)) + Math.floor(i / (SIDE * SIDE))]));
    return [...(await this.engine.run("pictures", { x: { data, dims: [1, 3, SIDE, SIDE] } }))];
  }

  /**
   * Draw an embedding, as chapter 14 does it by hand: steps of DDIM from noise; after each, the picture guessed so far.
   * @param {number[]} e @param {{noise: Float32Array, steps: number}} how
   * @returns {AsyncGenerator<Pixels, void, void>}
   */
  async *decode(e, { noise, steps }) {
    let x = noise;
    const times = Array.from({ length: steps }, (_, i) => Math.round(1000 - (1000 * i) / steps) - 1);
    for (const [i, t] of times.entries()) {
      const v = await this.engine.run("velocity", {
        x: { data: x, dims: [1, CHANNELS, FOLDED, FOLDED] },
        t: { data: Float32Array.of(t), dims: [1] },
        e: { data: Float32Array.from(e), dims: [1, e.length] },
        w: { data: Float32Array.of(GUIDANCE), dims: [1] },
      });
      const [a, b] = [Math.sqrt(KEPT[t]), Math.sqrt(1 - KEPT[t])];
      const left = i + 1 < steps ? KEPT[times[i + 1]] : 1;
      const guess = x.map((value, j) => Math.min(1, Math.max(-1, a * value - b * v[j])));
      x = x.map((value, j) => Math.sqrt(left) * guess[j] + Math.sqrt(1 - left) * (b * value + a * v[j]));
      yield unfold(guess);
    }
  }
}

/** Noise to begin with. @param {number} seed */
export function noise(seed) {
  const next = math.normal(seed);
  return Float32Array.from({ length: CHANNELS * FOLDED * FOLDED }, next);
}

/** How much of the picture is left at each time: abar of the cosine schedule, as diffusers computes it. */
const KEPT = (() => {
  const shape = (/** @type {number} */ at) => Math.cos((((at + 0.008) / 1.008) * Math.PI) / 2) ** 2;
  let product = 1;
  return Array.from({ length: 1000 }, (_, t) => {
    product *= 1 - Math.min(1 - shape((t + 1) / 1000) / shape(t / 1000), 0.999);
    return product;
  });
})();

/** From channels (27, 16, 16) of 3 x 3 blocks to the pixels of a canvas. @param {Float32Array} x */
function unfold(x) {
  const pixels = new Uint8ClampedArray(4 * SIDE * SIDE).fill(255);
  for (let channel = 0; channel < CHANNELS; channel++) {
    const [colour, dy, dx] = [Math.floor(channel / 9), Math.floor((channel % 9) / FOLD), channel % FOLD];
    for (let i = 0; i < FOLDED * FOLDED; i++) {
      const [row, column] = [Math.floor(i / FOLDED) * FOLD + dy, (i % FOLDED) * FOLD + dx];
      pixels[4 * (row * SIDE + column) + colour] = Math.round((x[channel * FOLDED * FOLDED + i] + 1) * 127.5);
    }
  }
  return pixels;
}

/** @param {Float32Array} flat @param {number} rows @returns {number[][]} */
function split(flat, rows) {
  const width = flat.length / rows;
  return Array.from({ length: rows }, (_, i) => [...flat.subarray(i * width, (i + 1) * width)]);
}
