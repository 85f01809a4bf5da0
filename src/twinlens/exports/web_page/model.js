/** The model of this folder: pictures of the network's size -> embeddings -> distances. */

import { formulaDistance, isFormula } from "./compare.js";
import * as ort from "./onnxruntime-web/ort.wasm.bundle.min.js";

ort.env.logLevel = "error";
// Threads need a page that is isolated from others by its server's headers.
if (!self.crossOriginIsolated) ort.env.wasm.numThreads = 1;

/** Load the model; errors say which file is wrong. */
export async function loadModel() {
  const description = JSON.parse(new TextDecoder().decode(await fetched("model.json")));
  const [encoder, comparator] = await Promise.all(
    ["model.onnx", "comparator.onnx"].map(async (name) =>
      name in description.graphs
        ? ort.InferenceSession.create(await checked(name, description.graphs[name]))
        : null));
  return new Model(description, encoder, comparator);
}

class Model {
  /** @param description contents of model.json. */
  constructor(description, encoder, comparator) {
    this.description = description;
    this.encoder = encoder;
    this.comparator = comparator;
  }

  /** The embedding of one picture, given as `pixels.networkInput`. */
  async embed(pixels) {
    const { size, color } = this.description.picture;
    const input = new ort.Tensor("uint8", pixels, [1, ...size, color === "grey" ? 1 : 3]);
    return (await this.encoder.run({ pixels: input })).embedding.data;
  }

  /** The distance of two embeddings; exactly 0 for equal ones. */
  async distance(a, b) {
    const name = this.description.model.comparator;
    if (isFormula(name)) return formulaDistance(name, a, b);
    const tensor = (embedding) => new ort.Tensor("float32", embedding, [1, embedding.length]);
    return (await this.comparator.run({ a: tensor(a), b: tensor(b) })).distance.data[0];
  }
}

async function fetched(name) {
  // Without it a browser may keep the graph of an earlier export beside a new model.json.
  const answer = await fetch(name, { cache: "no-cache" });
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** A file whose SHA-256 is known; browsers compute it on secure pages only. */
async function checked(name, expected) {
  const bytes = await fetched(name);
  if (crypto.subtle !== undefined) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== expected) {
      throw new Error(`${name} is not the file that model.json names; copy the folder again`);
    }
  }
  return bytes;
}
