/**
 * The mathematics of the explorables: small, in double precision, the same formulas as `caml_core`.
 *
 * `tests/test_live_math.py` compares every function with its counterpart there. Rows are examples throughout: features
 * (N, D), logits (N, C). A head is { weight: (C, D), bias: (C,) }. Nothing here changes its arguments, except `Adam`,
 * whose step moves a parameter in place, and random generators, which go on.
 *
 * @typedef {number[]} Vector
 * @typedef {number[][]} Matrix
 * @typedef {{weight: Matrix, bias: Vector}} Head
 * @typedef {{support: Matrix, supportY: Vector, hard: Matrix, hardY: Vector, head: Head}} Problem
 * @typedef {{loss: number, gradient: Matrix, head: Head, path: Head[]}} Answer
 */

/* --- vectors, chance ------------------------------------------------------------------------------------------ */

/** @param {Vector} a @param {Vector} b */
export const dot = (a, b) => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
};

/** a + size b. @param {Vector} a @param {Vector} b @param {number} [size] */
export const add = (a, b, size = 1) => a.map((value, i) => value + size * b[i]);

/** @param {Vector} a */
export const norm = (a) => Math.sqrt(dot(a, a));

/** @param {Matrix} a */
export const copy = (a) => a.map((row) => row.slice());

/** @param {number} rows @param {number} columns */
export const zeros = (rows, columns) => Array.from({ length: rows }, () => new Array(columns).fill(0));

/** Uniform numbers of [0, 1) from a seed (mulberry32), the same in every browser. @param {number} seed */
export function uniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Standard normal numbers from a seed (Box and Muller). @param {number} seed */
export function normal(seed) {
  const next = uniform(seed);
  return () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
}

/** k different numbers below n, in random order. @param {number} n @param {number} k @param {() => number} next */
export function sample(n, k, next) {
  const rows = Array.from({ length: n }, (_, i) => i);
  for (let i = 0; i < k; i++) {
    const j = i + Math.floor(next() * (n - i));
    [rows[i], rows[j]] = [rows[j], rows[i]];
  }
  return rows.slice(0, k);
}

/* --- the softmax head ----------------------------------------------------------------------------------------- */

/** @param {Vector} z */
export function logSoftmax(z) {
  const top = Math.max(...z);
  let sum = 0;
  for (const value of z) sum += Math.exp(value - top);
  const shift = top + Math.log(sum);
  return z.map((value) => value - shift);
}

/** @param {Vector} z */
export const softmax = (z) => logSoftmax(z).map(Math.exp);

/** W x + b of every row: (N, D) to (N, C). @param {Matrix} x @param {Head} head */
export const logits = (x, head) => x.map((row) => head.weight.map((w, c) => dot(w, row) + head.bias[c]));

/** The class with the highest score; among equals the first. @param {Vector} z */
export const argmax = (z) => z.indexOf(Math.max(...z));

/** Of every example. @param {Matrix} z logits @param {Vector} y labels */
export const crossEntropies = (z, y) => z.map((row, i) => -logSoftmax(row)[y[i]]);

/** @param {Vector} values @param {Vector} [weights] of each, summing to 1; equal ones where they are left out */
export const mean = (values, weights) =>
  values.reduce((sum, value, i) => sum + value * (weights ? weights[i] : 1 / values.length), 0);

/**
 * Cross-entropy of a head on examples and its gradient in the head.
 * @param {Matrix} x @param {Vector} y @param {Head} head
 * @param {Vector} [weights] of the examples, summing to 1; default: equal
 */
export function lossAndGradient(x, y, head, weights) {
  const gradient = { weight: zeros(head.bias.length, x[0].length), bias: head.bias.map(() => 0) };
  let loss = 0;
  for (let i = 0; i < x.length; i++) {
    const share = weights ? weights[i] : 1 / x.length;
    const logP = logSoftmax(head.weight.map((w, c) => dot(w, x[i]) + head.bias[c]));
    loss -= share * logP[y[i]];
    for (let c = 0; c < logP.length; c++) {
      const residual = share * (Math.exp(logP[c]) - (c === y[i] ? 1 : 0));
      gradient.bias[c] += residual;
      const row = gradient.weight[c];
      for (let d = 0; d < row.length; d++) row[d] += residual * x[i][d];
    }
  }
  return { loss, gradient };
}

/** head + size * gradient. @param {Head} head @param {Head} gradient @param {number} size @returns {Head} */
export const moved = (head, gradient, size) => ({
  weight: head.weight.map((w, c) => add(w, gradient.weight[c], size)),
  bias: add(head.bias, gradient.bias, size),
});

/**
 * Gradient descent on the cross-entropy; every head on the way, the first included.
 * @param {Matrix} x @param {Vector} y @param {Head} head
 * @param {{alpha: number, steps: number, weights?: Vector}} how
 */
export function train(x, y, head, { alpha, steps, weights }) {
  const path = [head];
  for (let t = 0; t < steps; t++) {
    head = moved(head, lossAndGradient(x, y, head, weights).gradient, -alpha);
    path.push(head);
  }
  return path;
}

/* --- HSFM ----------------------------------------------------------------------------------------------------- */

/** J b = p (b - <p, b>), through the softmax. @param {Vector} b @param {Vector} p */
const throughSoftmax = (b, p) => {
  const centre = dot(p, b);
  return p.map((value, c) => value * (b[c] - centre));
};

/**
 * The loss of the hard set under the head trained on the support set, and its derivative in the support features.
 *
 * The T steps are W_{t+1} = W_t - (alpha/S) R_t' H~ with H~ = (H, 1). Backwards, with X_T = dF/dW_T and
 * B_t = J_t(-(alpha/S) H~ X_{t+1}'), a step adds B_t W_t - (alpha/S) R_t X_{t+1} to dF/dH, and X_t = X_{t+1} + B_t' H~.
 * @param {Problem} problem
 * @param {{alpha: number, steps: number, last?: number, feedback?: boolean}} how `last`: differentiate only through so
 *   many steps; `feedback: false`: as if no step changed what a later one does (first order)
 * @returns {Answer}
 */
export function hypergradient({ support, supportY, hard, hardY, head }, { alpha, steps, last, feedback = true }) {
  const size = alpha / support.length;
  const path = train(support, supportY, head, { alpha, steps });
  const trained = path[steps];
  const outer = lossAndGradient(hard, hardY, trained);
  const x = { weight: copy(outer.gradient.weight), bias: outer.gradient.bias.slice() };
  const gradient = zeros(support.length, support[0].length);
  for (let t = steps - 1; t >= Math.max(0, steps - (last ?? steps)); t--) {
    const z = logits(support, path[t]);
    const turned = support.map((h, i) => {
      const p = softmax(z[i]);
      const b = throughSoftmax(
        x.weight.map((row, c) => -size * (dot(row, h) + x.bias[c])),
        p,
      );
      for (let c = 0; c < p.length; c++) {
        const residual = size * (p[c] - (c === supportY[i] ? 1 : 0));
        for (let d = 0; d < h.length; d++) gradient[i][d] += b[c] * path[t].weight[c][d] - residual * x.weight[c][d];
      }
      return b;
    });
    if (!feedback) continue;
    turned.forEach((b, i) => {
      for (let c = 0; c < b.length; c++) {
        x.bias[c] += b[c];
        for (let d = 0; d < support[i].length; d++) x.weight[c][d] += b[c] * support[i][d];
      }
    });
  }
  return { loss: outer.loss, gradient, head: trained, path };
}

/**
 * What each way to a hypergradient makes of a direction, where the inner loss is quadratic with this curvature.
 * @param {number} curvature @param {{alpha: number, steps: number, last: number}} how
 */
export function factors(curvature, { alpha, steps, last }) {
  const shrink = 1 - alpha * curvature;
  return {
    exact: (1 - shrink ** steps) / curvature,
    truncated: (1 - shrink ** last) / curvature,
    first: alpha * steps,
    implicit: 1 / (curvature + 1 / (alpha * steps)),
  };
}

/** A gradient, shortened to a norm where it is longer. @param {Matrix} gradient @param {number} most */
export function clipped(gradient, most) {
  const length = norm(gradient.flat());
  return length > most ? gradient.map((row) => row.map((value) => (value * most) / length)) : copy(gradient);
}

/** Adam (Kingma and Ba, 2015) for a matrix, which its steps move in place. */
export class Adam {
  /** @param {Matrix} like @param {number} size */
  constructor(like, size) {
    this.size = size;
    this.t = 0;
    this.mean = zeros(like.length, like[0].length);
    this.square = zeros(like.length, like[0].length);
  }

  /** @param {Matrix} parameter @param {Matrix} gradient */
  step(parameter, gradient) {
    this.t += 1;
    const first = 1 - 0.9 ** this.t;
    const second = 1 - 0.999 ** this.t;
    parameter.forEach((row, i) =>
      row.forEach((_, j) => {
        const g = gradient[i][j];
        this.mean[i][j] += 0.1 * (g - this.mean[i][j]);
        this.square[i][j] = 0.999 * this.square[i][j] + 0.001 * g * g;
        row[j] -= ((this.size / first) * this.mean[i][j]) / (Math.sqrt(this.square[i][j] / second) + 1e-8);
      }),
    );
  }
}

/**
 * The hard set: of each class the k examples with the highest loss, class by class.
 * @param {Matrix} z logits @param {Vector} y @param {number} k
 */
export function hardRows(z, y, k) {
  const losses = crossEntropies(z, y);
  return z[0].flatMap((_, c) => highest(losses.map((loss, i) => (y[i] === c ? loss : -Infinity)), k));
}

/**
 * Epochs of HSFM as `caml_core.hsfm.hsfm` runs them: `edits` edits of the support set on one hard set, clipped and by
 * Adam(eta), then `steps` Adam(alpha) steps of the head on the edited set.
 * @param {{support: Matrix, supportY: Vector, x: Matrix, y: Vector, head: Head}} start x, y: the validation examples
 * @param {{steps: number, alpha: number, eta: number, edits: number, hard: number, clip: number,
 *          project?: (h: Vector) => Vector}} settings project: where a feature goes after every edit
 * @returns {Generator<{support: Matrix, head: Head, rows: Vector, loss: number}, never, void>}
 */
export function* hsfm({ support, supportY, x, y, head }, { steps, alpha, eta, edits, hard, clip, project }) {
  const h = copy(support);
  const weight = copy(head.weight);
  const bias = [head.bias.slice()];
  const editor = new Adam(h, eta);
  const trainers = [new Adam(weight, alpha), new Adam(bias, alpha)];
  for (;;) {
    const fixed = { weight: copy(weight), bias: bias[0].slice() };
    const rows = hardRows(logits(x, fixed), y, hard);
    const problem = { support: h, supportY, hard: rows.map((i) => x[i]), hardY: rows.map((i) => y[i]), head: fixed };
    let loss = NaN;
    for (let edit = 0; edit < edits; edit++) {
      const answer = hypergradient(problem, { alpha, steps });
      if (edit === 0) loss = answer.loss;
      editor.step(h, clipped(answer.gradient, clip));
      if (project) h.forEach((row, i) => (h[i] = project(row)));
    }
    for (let t = 0; t < steps; t++) {
      const { gradient } = lossAndGradient(h, supportY, { weight, bias: bias[0] });
      trainers[0].step(weight, gradient.weight);
      trainers[1].step(bias, [gradient.bias]);
    }
    yield { support: copy(h), head: { weight: copy(weight), bias: bias[0].slice() }, rows, loss };
  }
}

/* --- CAML, MLDG, up-weighting --------------------------------------------------------------------------------- */

/**
 * A loss of flat parameters, by its gradient and the product of its Hessian with a vector.
 * @template Batch
 * @typedef {{gradient: (theta: Vector, batch: Batch) => Vector,
 *            hessian: (theta: Vector, batch: Batch, v: Vector) => Vector}} Loss
 */

/** Half the squared distance to a point. @type {Loss<Vector>} */
export const pull = { gradient: (theta, wish) => add(theta, wish, -1), hessian: (_theta, _wish, v) => v.slice() };

/**
 * Mean cross-entropy of a softmax head whose parameters are flat: W row by row, then b.
 * @param {number} classes @param {number} width
 * @returns {Loss<{x: Matrix, y: Vector}>}
 */
export function softmaxLoss(classes, width) {
  /** @param {Vector} theta */
  const shaped = (theta) => ({
    weight: Array.from({ length: classes }, (_, c) => theta.slice(c * width, (c + 1) * width)),
    bias: theta.slice(classes * width),
  });
  return {
    gradient(theta, { x, y }) {
      const { gradient } = lossAndGradient(x, y, shaped(theta));
      return [...gradient.weight.flat(), ...gradient.bias];
    },
    hessian(theta, { x }, v) {
      const direction = shaped(v);
      const p = logits(x, shaped(theta)).map(softmax);
      const turned = logits(x, direction).map((z, i) => throughSoftmax(z, p[i]));
      const product = zeros(classes, width);
      const bias = new Array(classes).fill(0);
      turned.forEach((row, i) =>
        row.forEach((value, c) => {
          bias[c] += value / x.length;
          for (let d = 0; d < width; d++) product[c][d] += (value * x[i][d]) / x.length;
        }),
      );
      return [...product.flat(), ...bias];
    },
  };
}

/**
 * CAML's meta-gradient c / R, as in `caml_core.meta.meta_gradient`: adapt on what was labelled before a round, under
 * the bias that accumulated; be judged on what the round queried. `cumulative: false` is MLDG, `alpha: 0` up-weighting.
 * @template Batch
 * @param {Loss<Batch>} loss @param {Vector} theta @param {[Batch, Batch][]} tasks for each round D_{t-1} and Q_t
 * @param {{alpha: number, cumulative?: boolean, order?: "first" | "exact"}} how
 */
export function metaGradient(loss, theta, tasks, { alpha, cumulative = true, order = "first" }) {
  let c = theta.map(() => 0);
  const adapted = tasks.map(([known, asked], t) => {
    let u = loss.gradient(theta, known);
    if (cumulative && t > 0) u = add(u, c, 1 / t);
    const there = add(theta, u, -alpha);
    c = add(c, loss.gradient(there, asked));
    return there;
  });
  if (order === "exact" && alpha > 0) {
    let onC = theta.map(() => 0); // what c is worth to the later rounds
    const total = theta.map(() => 0);
    for (let t = tasks.length - 1; t >= 0; t--) {
      const [known, asked] = tasks[t];
      const onAdapted = add(loss.gradient(adapted[t], asked), loss.hessian(adapted[t], asked, onC));
      const onTheta = add(onAdapted, loss.hessian(theta, known, onAdapted), -alpha);
      if (cumulative && t > 0) onC = add(onC, onAdapted, -alpha / t);
      onTheta.forEach((value, i) => (total[i] += value));
    }
    c = total;
  }
  return c.map((value) => value / tasks.length);
}

/* --- queries -------------------------------------------------------------------------------------------------- */

/** Rows of the k highest scores; among equals the lowest row first. @param {Vector} score @param {number} k */
export const highest = (score, k) =>
  score
    .map((_, i) => i)
    .sort((i, j) => score[j] - score[i] || i - j)
    .slice(0, k);

/** 1 - max_c p_c. @param {Matrix} z */
export const leastConfidence = (z) => z.map((row) => 1 - Math.max(...softmax(row)));

/** Second minus first probability: high where the margin is small. @param {Matrix} z */
export const margin = (z) =>
  z.map((row) => {
    const [first, second] = softmax(row).sort((a, b) => b - a);
    return second - first;
  });

/** In nats. @param {Matrix} z */
export const entropy = (z) => z.map((row) => -logSoftmax(row).reduce((sum, logP) => sum + Math.exp(logP) * logP, 0));

/** @param {Vector} a @param {Vector} b */
const distance = (a, b) => norm(add(a, b, -1));

/**
 * k-centre greedy: again and again the row farthest from everything labelled or chosen.
 * @param {Matrix} features @param {Matrix} labelled @param {number} k
 */
export function coreSet(features, labelled, k) {
  const nearest = features.map((z) => labelled.reduce((least, other) => Math.min(least, distance(z, other)), Infinity));
  /** @type {Vector} */
  const rows = [];
  while (rows.length < k) {
    const row = argmax(nearest);
    rows.push(row);
    features.forEach((z, i) => (nearest[i] = Math.min(nearest[i], distance(z, features[row]))));
    for (const chosen of rows) nearest[chosen] = -1;
  }
  return rows;
}

/**
 * BADGE: k-means++ on the gradients that the last layer would get if each guess were right; the longest first.
 * @param {Matrix} z logits @param {Matrix} features @param {number} k @param {() => number} next uniform numbers
 */
export function badge(z, features, k, next) {
  const a = z.map((row) => {
    const p = softmax(row);
    p[argmax(p)] -= 1;
    return p;
  });
  const length = a.map((row, i) => dot(row, row) * dot(features[i], features[i])); // squared
  const rows = [argmax(length)];
  const nearest = length.map(() => Infinity);
  while (rows.length < k) {
    const row = rows[rows.length - 1];
    for (let i = 0; i < nearest.length; i++) {
      const squared = length[i] + length[row] - 2 * dot(a[i], a[row]) * dot(features[i], features[row]);
      nearest[i] = Math.min(nearest[i], Math.max(0, squared));
    }
    for (const chosen of rows) nearest[chosen] = 0;
    let sum = 0;
    const until = nearest.map((value) => (sum += value));
    const at = next() * sum;
    const found = sum > 0 ? until.findIndex((value) => value > at) : nearest.findIndex((_, i) => !rows.includes(i));
    rows.push(found < 0 ? nearest.length - 1 : found);
  }
  return rows;
}

/* --- group accuracies ----------------------------------------------------------------------------------------- */

/** Wilson's 95% interval of a proportion, in percent. @param {number} correct @param {number} n */
export function wilson(correct, n) {
  const z = 1.959964;
  const p = correct / n;
  const centre = p + (z * z) / (2 * n);
  const spread = z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
  const [low, high] = [-1, 1].map((side) => (100 * (centre + side * spread)) / (1 + (z * z) / n));
  return { low: Math.max(0, low), high: Math.min(100, high) };
}

/**
 * Accuracies in percent, named as in `caml_core.metrics`; group g = label * attributes + attribute.
 * @param {Vector} guess @param {Vector} y @param {Vector} a as many attributes as classes; y !== a is minority
 * @param {number} classes @param {Vector} [trainCounts] of the groups, for `adjusted`
 */
export function groupAccuracies(guess, y, a, classes, trainCounts) {
  const n = new Array(classes * classes).fill(0);
  const correct = n.slice();
  guess.forEach((c, i) => {
    n[y[i] * classes + a[i]] += 1;
    if (c === y[i]) correct[y[i] * classes + a[i]] += 1;
  });
  const groups = n.map((count, g) => ({
    n: count,
    correct: correct[g],
    value: (100 * correct[g]) / count,
    ...wilson(correct[g], count),
  }));
  /** @param {(g: number) => boolean} among */
  const pooled = (among) => {
    const chosen = groups.filter((_, g) => among(g));
    return (100 * chosen.reduce((sum, g) => sum + g.correct, 0)) / chosen.reduce((sum, g) => sum + g.n, 0);
  };
  const filled = groups.map((_, g) => g).filter((g) => n[g] > 0);
  const counts = filled.map((g) => (trainCounts ?? n)[g]);
  return {
    groups,
    average: pooled(() => true),
    adjusted: filled.reduce((sum, g, i) => sum + counts[i] * groups[g].value, 0) / counts.reduce((s, m) => s + m, 0),
    worst: Math.min(...filled.map((g) => groups[g].value)),
    minority: pooled((g) => Math.floor(g / classes) !== g % classes),
    majority: pooled((g) => Math.floor(g / classes) === g % classes),
  };
}

/* --- on the sphere of CLIP ------------------------------------------------------------------------------------ */

/** a scaled to length 1. @param {Vector} a */
export const unit = (a) => {
  const length = norm(a);
  return a.map((value) => value / length);
};

/** The cosine of two vectors; 0 where one has no length. @param {Vector} a @param {Vector} b */
export const cosine = (a, b) => dot(a, b) / (norm(a) * norm(b) || 1);

/** Coordinates of the directions that embeddings fill, as in `caml_core.pictures.space.ClipSpace`. */
export class Space {
  /** @param {Vector} mean of embeddings (D,) @param {Matrix} directions (D, K), orthonormal */
  constructor(mean, directions) {
    this.mean = mean;
    this.axes = directions[0].map((_, k) => directions.map((row) => row[k]));
  }

  /** Coordinates of an embedding. @param {Vector} e */
  to(e) {
    const moved = add(e, this.mean, -1);
    return this.axes.map((axis) => dot(axis, moved));
  }

  /** A direction or a move with these coordinates. @param {Vector} u */
  spread(u) {
    return this.mean.map((_, d) => u.reduce((sum, value, k) => sum + value * this.axes[k][d], 0));
  }

  /** The unit embedding at or nearest below u. @param {Vector} u */
  back(u) {
    return unit(add(this.mean, this.spread(u)));
  }

  /** u moved to the sphere. @param {Vector} u */
  project(u) {
    return this.to(this.back(u));
  }
}

/** From a unit vector along the great circle towards another, by an angle. @param {Vector} start
 * @param {Vector} towards @param {number} angle in radians */
export function turn(start, towards, angle) {
  const tangent = unit(add(towards, start, -dot(towards, start)));
  return start.map((value, i) => Math.cos(angle) * value + Math.sin(angle) * tangent[i]);
}

/**
 * A control for an edit: as far from `before` in a straight line, in a random direction of the space.
 * @param {Space} space @param {Vector} before @param {number} length below 2 @param {() => number} next normal numbers
 */
export function randomMove(space, before, length, next) {
  return turn(before, space.spread(space.axes.map(next)), 2 * Math.asin(Math.min(1, length / 2)));
}
