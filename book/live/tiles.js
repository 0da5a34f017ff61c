/** Small pictures: with words below them, or on a shelf to choose from. */

import { element } from "./parts.js";

/** @typedef {import("./birds.js").Pixels} Pixels */

const SIDE = 48;
export const STYLE = `
.explorable-body canvas.stage {
  display: block; width: 100%; max-width: 22rem; image-rendering: pixelated; cursor: grab; touch-action: none;
}
.explorable-body .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.2rem, 1fr)); gap: 0.6rem; }
.explorable-body .tile { margin: 0; font-size: 0.85em; line-height: 1.35; }
.explorable-body .tile figcaption { text-align: left; margin: 0.2rem 0 0; font-weight: 400; }
.explorable-body .tile figcaption :is(b, span, mark) { color: var(--ink); font: inherit; }
.explorable-body .tile figcaption b { display: block; font-weight: 700; }
.explorable-body .tile figcaption mark { background: none; padding: 0; font-weight: 700; text-decoration: underline; }
.explorable-body :is(.tile, .shelf) canvas { display: block; width: 100%; image-rendering: pixelated; }
.explorable-body .tile canvas { max-width: 10rem; border-radius: 0.2rem; background: var(--surface); }
.explorable-body .shelf {
  border: 0; margin: 0; padding: 0; min-width: 0; flex: 1 0 100%;
  display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 0.3rem;
}
@container (min-width: 34rem) { .explorable-body .shelf { grid-template-columns: repeat(12, minmax(0, 1fr)); } }
.explorable-body .shelf legend { float: none; grid-column: 1 / -1; font-size: 0.9em; margin: 0; color: var(--ink); }
.explorable-body .shelf div { display: flex; flex-direction: column; align-items: center; }
.explorable-body .shelf button { padding: 2px; min-height: 0; width: 100%; border: 2px solid transparent; }
.explorable-body .shelf button[aria-pressed="true"] { border-color: var(--accent); }
.explorable-body .shelf label { padding: 0.2rem 0.5rem; min-height: 1.7rem; }
`;

export const canvasOf = () =>
  /** @type {HTMLCanvasElement} */ (element("canvas", { width: String(SIDE), height: String(SIDE), role: "img" }));

/** @param {HTMLElement} place @param {string} name @param {string} title */
export function tile(place, name, title) {
  const canvas = canvasOf();
  const words = element("span");
  place.append(
    element("figure", { class: "tile", "data-tile": name }, canvas, element("figcaption", {}, element("b", {}, title), words)),
  );
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  let drawn = "";
  return {
    /** @param {Pixels | null} pixels (48, 48, 4) */
    draw(pixels) {
      if (!pixels) pen.clearRect(0, 0, SIDE, SIDE);
      else pen.putImageData(new ImageData(pixels, SIDE, SIDE), 0, 0);
    },
    /** What stands below; words in *stars* stand out. @param {string} text */
    tell(text) {
      if (text === drawn) return;
      drawn = text;
      words.replaceChildren(...text.split("*").map((part, i) => (i % 2 ? element("mark", {}, part) : part)));
      canvas.setAttribute("aria-label", `${title}: ${text.replaceAll("*", "")}`);
    },
  };
}

/** The scenes of a sheet. @param {Uint8Array} jpeg @returns {Promise<(i: number) => Pixels>} */
export async function sheet(jpeg) {
  const image = await createImageBitmap(new Blob([/** @type {Uint8Array<ArrayBuffer>} */ (jpeg)], { type: "image/jpeg" }));
  const canvas = new OffscreenCanvas(image.width, image.height);
  const pen = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  pen.drawImage(image, 0, 0);
  const columns = image.width / SIDE;
  return (i) => pen.getImageData((i % columns) * SIDE, Math.floor(i / columns) * SIDE, SIDE, SIDE).data;
}

/**
 * Scenes to press, each with a box to tick.
 * @param {HTMLElement} place
 * @param {{legend: string, scenes: {pixels: Pixels, label: string}[], press: (i: number) => void,
 *          tick: (i: number, on: boolean) => void}} about
 */
export function shelf(place, { legend, scenes, press, tick }) {
  const cells = scenes.map(({ pixels, label }, i) => {
    const canvas = /** @type {HTMLCanvasElement} */ (
      element("canvas", { width: String(SIDE), height: String(SIDE), "aria-hidden": "true" })
    );
    const image = new ImageData(pixels, SIDE, SIDE);
    /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).putImageData(image, 0, 0);
    const button = element("button", { type: "button", "aria-label": `look at ${label}`, title: label }, canvas);
    const box = /** @type {HTMLInputElement} */ (
      element("input", { type: "checkbox", name: `support-${i}`, "aria-label": `${label} in the support set` })
    );
    button.addEventListener("click", () => press(i));
    box.addEventListener("change", () => tick(i, box.checked));
    return { cell: element("div", {}, button, element("label", {}, box)), button, box };
  });
  place.append(
    element("style", {}, STYLE),
    element("fieldset", { class: "shelf" }, element("legend", {}, legend), ...cells.map(({ cell }) => cell)),
  );
  /** @param {number} looked -1: at none @param {number[]} chosen */
  return (looked, chosen) =>
    cells.forEach(({ button, box }, i) => {
      button.setAttribute("aria-pressed", String(i === looked));
      box.checked = chosen.includes(i) || i === looked;
      box.disabled = i === looked;
    });
}
