/** Pictures that are drawn in the page while the reader goes on. */

import { noise, SIDE, SPOKEN, VALUES } from "./birds.js";
import { prefersStillness } from "./parts.js";

/** @typedef {import("./birds.js").Reading} Reading */
/** @typedef {import("./birds.js").Pixels} Pixels */
/** @typedef {ReturnType<typeof import("./tiles.js").tile>} Tile */

/**
 * Draws three embeddings from one noise, one after the other, and begins anew when they change.
 * @param {import("./parts.js").Room} room @param {import("./birds.js").Models} models
 * @param {Record<"before" | "after" | "random", Tile>} picture
 */
export function decoder(room, models, picture) {
  const names = /** @type {const} */ (["before", "after", "random"]);
  /** @type {Map<string, {pixels: Pixels, read: Reading}>} */
  const known = new Map();
  let wish = 0;
  let timer = 0;
  /** @param {Reading} read @param {Reading} [other] */
  const words = (read, other) =>
    SPOKEN.map((name) => {
      const word = `${name === "facing" ? "facing " : name === "background" ? "on " : ""}${VALUES[name][read[name]]}`;
      return other && other[name] !== read[name] ? `*${word}*` : word;
    }).join(" ");
  /** @param {Record<(typeof names)[number], number[]>} wanted */
  return (wanted) => {
    const { noise: seed, draws } = room.state;
    const keys = names.map((name) => {
      return JSON.stringify([wanted[name].map((value) => Math.round(1e5 * value)), seed, draws]);
    });
    const mine = ++wish;
    clearTimeout(timer);
    const finish = () => {
      const first = known.get(keys[0]);
      names.forEach((name, i) => {
        const found = known.get(keys[i]);
        if (!found) return picture[name].tell("being drawn …");
        picture[name].draw(found.pixels);
        picture[name].tell(words(found.read, i ? first?.read : undefined));
      });
      room.el.dataset.drawn = String(keys.every((key) => known.has(key)));
    };
    finish();
    timer = setTimeout(async () => {
      for (const [i, name] of names.entries()) {
        if (known.has(keys[i])) continue;
        const begin = performance.now();
        let pixels = new Uint8ClampedArray(4 * SIDE * SIDE);
        for await (const guess of models.decode(wanted[name], { noise: noise(seed), steps: Number(draws) })) {
          if (mine !== wish) return;
          pixels = guess;
          if (!prefersStillness()) picture[name].draw(pixels);
        }
        room.el.dataset.decode = String(performance.now() - begin);
        const read = models.read(await models.embed(pixels));
        known.set(keys[i], { pixels, read });
        if (mine !== wish) return;
        finish();
      }
    }, 100);
  };
}
