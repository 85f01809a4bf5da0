/** Two embeddings -> distance, verdict and probability, as `twinlens.match.matcher` answers. */

const FORMULAS = {
  euclidean: (a, b) => Math.sqrt(squared(a, b)),
  "squared-euclidean": squared,
  cosine: (a, b) => squared(unit(a), unit(b)) / 2,
};

/** Whether a comparator is a formula; the others are the graph comparator.onnx. */
export function isFormula(comparator) {
  return comparator in FORMULAS;
}

/** The distance of two embeddings by a comparator that is a formula; lower is closer. */
export function formulaDistance(comparator, a, b) {
  return FORMULAS[comparator](a, b);
}

function squared(a, b) {
  return a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0);
}

function unit(embedding) {
  const length = Math.hypot(...embedding);
  return Array.from(embedding, (value) => value / Math.max(length, 1e-12));
}

/** Whether a distance is a match. */
export function isMatch(distance, calibration) {
  return distance <= calibration.threshold;
}

/** The probability of a match at even odds, within what the pairs support; null without a curve. */
export function probability(distance, { curve, num_genuine, num_impostor }) {
  if (curve === null) return null;
  const value = curve.kind === "platt" ? platt(distance, curve) : isotonic(distance, curve);
  return Math.min(1 - 1 / (num_impostor + 2), Math.max(1 / (num_genuine + 2), value));
}

function platt(distance, { a, b }) {
  return 0.5 - 0.5 * Math.tanh((a * distance + b) / 2);
}

/** Straight lines between knots, level beyond the ends. */
function isotonic(distance, { x, y }) {
  const right = x.findIndex((knot) => knot >= distance);
  if (right === -1) return y.at(-1);
  if (right === 0) return y[0];
  const share = (distance - x[right - 1]) / (x[right] - x[right - 1]);
  return y[right - 1] + share * (y[right] - y[right - 1]);
}
