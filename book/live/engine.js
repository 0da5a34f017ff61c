/**
 * The book's own networks in a page: ONNX Runtime in a thread of its own, and what a file of `book/engines.py` holds.
 *
 * Nothing is loaded before a reader asks. A page opened from the disk can neither fetch nor import, but it can load
 * classic scripts; so both files lie beside the bundle as scripts that carry them (`book/assets.py`). In Jupyter the
 * weights come from the installed package, and the runtime from its public copy.
 */

/** @typedef {Record<string, {data: Float32Array | Int32Array, dims: number[]}>} Feeds */
/** @typedef {{shape: number[], data: Float32Array | Uint8Array}} Stored */

export const RUNTIME = "1.30.0"; // of onnxruntime-web, as in book/assets.lock.json
const CDN = `https://cdn.jsdelivr.net/npm/onnxruntime-web@${RUNTIME}/dist/`;
const CODE = {
  file: "ort.wasm.bundle.min.mjs",
  integrity: "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
};
const WASM = {
  file: "ort-wasm-simd-threaded.wasm",
  integrity: "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
};
const HERE = /** @type {HTMLScriptElement | null} */ (document.currentScript)?.src;

/** What runs in the thread. It stands alone: only its text goes there. */
function work() {
  /** @type {any} */
  let ort;
  /** @type {Record<string, any>} */
  const sessions = {};
  /** @param {string | ArrayBuffer} packed base64 of gzip, or the bytes themselves */
  const unpack = async (packed) => {
    if (typeof packed !== "string") return packed;
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  };
  /** @type {Record<string, (asked: any) => Promise<any>>} */
  const answers = {
    async open({ code, wasm, weights }) {
      const address = URL.createObjectURL(new Blob([await unpack(code)], { type: "text/javascript" }));
      ort = await import(address);
      URL.revokeObjectURL(address);
      ort.env.wasm.numThreads = 1;
      ort.env.wasm.wasmBinary = await unpack(wasm);
      return unpack(weights);
    },
    async graph({ name, bytes }) {
      sessions[name] = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    },
    async run({ name, feeds }) {
      const inputs = Object.entries(feeds).map(([key, { data, dims }]) => {
        return [key, new ort.Tensor(data instanceof Float32Array ? "float32" : "int32", data, dims)];
      });
      return (await sessions[name].run(Object.fromEntries(inputs))).out.data;
    },
  };
  addEventListener("message", async ({ data }) => {
    try {
      postMessage({ id: data.id, answer: await answers[data.ask](data) });
    } catch (error) {
      postMessage({ id: data.id, error: String(error) });
    }
  });
}

/** Networks that answer, and the arrays that came with them. */
export class Engine {
  constructor() {
    const address = URL.createObjectURL(new Blob([`(${work})()`], { type: "text/javascript" }));
    this.worker = new Worker(address);
    /** @type {Map<number, {done: (answer: any) => void, failed: (error: Error) => void}>} */
    this.waiting = new Map();
    this.asked = 0;
    /** @type {Record<string, Stored>} */
    this.stored = {};
    /** @type {Record<string, string>} */
    this.notes = {};
    this.worker.addEventListener("message", ({ data }) => {
      const { done, failed } = /** @type {any} */ (this.waiting.get(data.id));
      this.waiting.delete(data.id);
      if ("error" in data) failed(new Error(data.error));
      else done(data.answer);
    });
    this.worker.addEventListener("error", (event) => {
      for (const { failed } of this.waiting.values()) failed(new Error(event.message || "no thread could be started"));
    });
  }

  /** @param {string} ask @param {Record<string, any>} with_ @returns {Promise<any>} */
  ask(ask, with_) {
    const id = ++this.asked;
    return new Promise((done, failed) => {
      this.waiting.set(id, { done, failed });
      this.worker.postMessage({ id, ask, ...with_ });
    });
  }

  /**
   * Load the runtime and a file of weights, and prepare all graphs in it.
   * @param {string} file name without its ending @param {import("./parts.js").Model} model of the widget
   */
  async open(file, model) {
    const page = Boolean(model.get("page"));
    const weights = page ? await script(file) : await fromPython(model);
    const code = await (page ? script("ort.mjs").catch(() => copy(CODE)) : copy(CODE));
    const wasm = await (page ? script("ort.wasm").catch(() => copy(WASM)) : copy(WASM));
    this.read(await this.ask("open", { code, wasm, weights }));
    for (const [name, { data }] of Object.entries(this.stored)) {
      if (!name.endsWith(".onnx")) continue;
      await this.ask("graph", { name: name.slice(0, -5), bytes: data });
      delete this.stored[name];
    }
  }

  /** The tensors of a file of safetensors. @param {ArrayBuffer} buffer */
  read(buffer) {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    this.notes = header.__metadata__;
    delete header.__metadata__;
    for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
      const bytes = buffer.slice(8 + length + data_offsets[0], 8 + length + data_offsets[1]);
      this.stored[name] = { shape, data: dtype === "F32" ? new Float32Array(bytes) : new Uint8Array(bytes) };
    }
  }

  /** A stored matrix, row by row. @param {string} name @returns {number[][]} */
  rows(name) {
    const { shape, data } = this.stored[name];
    const width = shape[1] ?? shape[0];
    return Array.from({ length: data.length / width }, (_, i) => [...data.subarray(i * width, (i + 1) * width)]);
  }

  /** @param {string} name of a graph @param {Feeds} feeds @returns {Promise<Float32Array>} */
  run(name, feeds) {
    return this.ask("run", { name, feeds });
  }
}

/** What a script of the page's folder `engines` carries. @param {string} name @returns {Promise<string>} */
function script(name) {
  const carried = /** @type {Record<string, string>} */ (/** @type {any} */ (globalThis).bookEngines ??= {});
  return new Promise((done, failed) => {
    const tag = document.createElement("script");
    tag.src = new URL(`engines/${name}.js`, HERE).href;
    tag.onload = () => {
      done(carried[name]);
      delete carried[name];
      tag.remove();
    };
    tag.onerror = () => failed(new Error(`${tag.src} could not be loaded`));
    document.head.append(tag);
  });
}

/** A file of the runtime's public copy, whose content is known. @param {{file: string, integrity: string}} wanted */
async function copy({ file, integrity }) {
  return (await fetch(CDN + file, { integrity })).arrayBuffer();
}

/** The weights, from the package in which Python runs. @param {any} model @returns {Promise<ArrayBuffer>} */
function fromPython(model) {
  return new Promise((done) => {
    model.on("msg:custom", (/** @type {any} */ _message, /** @type {DataView<ArrayBuffer>[]} */ [weights]) => {
      done(weights.buffer.slice(weights.byteOffset, weights.byteOffset + weights.byteLength));
    });
    model.send({ ask: "weights" });
  });
}
