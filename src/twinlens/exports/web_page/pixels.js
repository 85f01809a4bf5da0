/**
 * Decoded pictures -> the input of the network, equal to `twinlens.data.decode` bit for bit.
 *
 * A raster is {pixels, width, height, channels}: bytes row by row, the channels of a pixel side by
 * side. Everything here is arithmetic on arrays, so that it runs in Node too.
 */

const WHITE = 255;
const FRACTION_BITS = 22; // of the weights of resizing
const HALF = 1 << (FRACTION_BITS - 1);

/**
 * The network's input: bytes of shape (height, width, channels).
 *
 * @param raster RGBA, upright, alpha not premultiplied.
 * @param picture `picture` of model.json.
 * @param isJpeg whether the file is a JPEG, which twinlens decodes at a reduced size.
 */
export function networkInput(raster, picture, isJpeg) {
  const channels = picture.color === "grey" ? 1 : 3;
  const factor = isJpeg ? draftFactor(raster, picture.size) : 1;
  // Reduced before the colours become grey, as by a decoder.
  const plain = factor > 1 ? opaque(reduced(opaque(raster, 3), factor), channels)
                           : opaque(raster, channels);
  return FITS[picture.fit](plain, picture.size, picture.fill);
}

/**
 * How much smaller twinlens decodes a JPEG: the largest of 8, 4 and 2 that leaves both sides twice
 * as long as the network's input, else 1.
 */
export function draftFactor({ width, height }, size) {
  const side = 2 * Math.max(...size);
  const scale = Math.min(Math.floor(width / side), Math.floor(height / side));
  return [8, 4, 2].find((factor) => scale >= factor) ?? 1;
}

/** A raster of 1 or 3 channels: alpha blended with white, colours to grey by ITU-R 601. */
export function opaque(raster, channels) {
  const { pixels, width, height } = raster;
  const step = raster.channels;
  const result = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; from < pixels.length; from += step, to += channels) {
    let [red, green, blue] = [pixels[from], pixels[from + 1], pixels[from + 2]];
    if (step === 4 && pixels[from + 3] !== 255) {
      const alpha = pixels[from + 3];
      red = onWhite(red, alpha);
      green = onWhite(green, alpha);
      blue = onWhite(blue, alpha);
    }
    if (channels === 1) {
      result[to] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    } else {
      result[to] = red;
      result[to + 1] = green;
      result[to + 2] = blue;
    }
  }
  return { pixels: result, width, height, channels };
}

/** One blended value, in the fixed point of Pillow's `alpha_composite`. */
function onWhite(value, alpha) {
  const sum = (value * alpha + WHITE * (255 - alpha) + 128) * 128;
  return ((sum >> 8) + sum) >> 15; // divided by 255 and by 128
}

/** Means of blocks of factor x factor pixels; those at the right and lower edge may be smaller. */
export function reduced({ pixels, width, height, channels }, factor) {
  const [wide, high] = [Math.ceil(width / factor), Math.ceil(height / factor)];
  const result = new Uint8Array(wide * high * channels);
  const sums = new Uint32Array(wide * channels);
  for (let y = 0; y < high; y++) {
    const rows = Math.min(factor, height - y * factor);
    sums.fill(0);
    for (let row = y * factor; row < y * factor + rows; row++) {
      for (let x = 0, from = row * width * channels; x < width; x++) {
        let to = Math.floor(x / factor) * channels;
        for (let c = 0; c < channels; c++) sums[to++] += pixels[from++];
      }
    }
    for (let x = 0, to = 0; x < wide; x++) {
      const count = rows * Math.min(factor, width - x * factor);
      for (let c = 0; c < channels; c++, to++) {
        result[y * wide * channels + to] = Math.floor((sums[to] + count / 2) / count);
      }
    }
  }
  return { pixels: result, width: wide, height: high, channels };
}

// --- to the network's size ----------------------------------------------------------------------

const FITS = { stretch, pad, crop };

function stretch(plain, [height, width]) {
  return resized(plain, height, width).pixels;
}

function pad(plain, [height, width], fill) {
  const scale = Math.min(height / plain.height, width / plain.width);
  const inner = (side, limit) => Math.min(limit, Math.max(1, halfToEven(side * scale)));
  const small = resized(plain, inner(plain.height, height), inner(plain.width, width));
  const row = small.width * plain.channels;
  const left = Math.floor((width - small.width) / 2);
  const top = Math.floor((height - small.height) / 2);
  const ground = new Uint8Array(height * width * plain.channels).fill(fill);
  for (let y = 0; y < small.height; y++) {
    const source = small.pixels.subarray(y * row, (y + 1) * row);
    ground.set(source, ((top + y) * width + left) * plain.channels);
  }
  return ground;
}

function crop(plain, [height, width]) {
  const scale = Math.max(height / plain.height, width / plain.width);
  const keptWidth = Math.min(plain.width, width / scale);
  const keptHeight = Math.min(plain.height, height / scale);
  const left = (plain.width - keptWidth) / 2;
  const top = (plain.height - keptHeight) / 2;
  return resized(plain, height, width, [left, top, left + keptWidth, top + keptHeight]).pixels;
}

/** The nearest whole number; a half goes to the even one, as Python rounds. */
function halfToEven(value) {
  const floor = Math.floor(value);
  if (value - floor === 0.5) return floor + (floor % 2);
  return Math.round(value);
}

// --- resizing: antialiased bilinear, one side after the other, rounded to bytes in between ------

/**
 * A part of a raster at another size, as by Pillow's `resize` with the bilinear filter.
 *
 * @param box left, top, right and lower end of the part; they may be fractions.
 */
function resized(raster, height, width, box = [0, 0, raster.width, raster.height]) {
  const [left, top, right, lower] = box;
  const across = (from) => resizedAcross(from, width, left, right);
  const down = (from) => resizedDown(from, height, top, lower);
  // Pillow 13 begins with the height if that saves much; the order decides on single levels.
  const saved = raster.height - height;
  const downFirst = saved > 0 && saved > 2 * (raster.width - width);
  return downFirst ? across(down(raster)) : down(across(raster));
}

function resizedAcross(raster, width, low, high) {
  if (width === raster.width && low === 0 && high === width) return raster;
  const { pixels, height, channels } = raster;
  const row = raster.width * channels;
  const result = new Uint8Array(width * height * channels);
  windows(raster.width, width, low, high).forEach(({ start, weights }, x) => {
    for (let y = 0; y < height; y++) {
      for (let c = 0; c < channels; c++) {
        let sum = HALF;
        let from = y * row + start * channels + c;
        for (let k = 0; k < weights.length; k++, from += channels) sum += pixels[from] * weights[k];
        result[(y * width + x) * channels + c] = toByte(sum);
      }
    }
  });
  return { pixels: result, width, height, channels };
}

function resizedDown(raster, height, low, high) {
  if (height === raster.height && low === 0 && high === height) return raster;
  const { pixels, width, channels } = raster;
  const row = width * channels;
  const result = new Uint8Array(row * height);
  const sums = new Int32Array(row);
  windows(raster.height, height, low, high).forEach(({ start, weights }, y) => {
    sums.fill(HALF);
    for (let k = 0; k < weights.length; k++) {
      const from = (start + k) * row;
      for (let i = 0; i < row; i++) sums[i] += pixels[from + i] * weights[k];
    }
    for (let i = 0; i < row; i++) result[y * row + i] = toByte(sums[i]);
  });
  return { pixels: result, width, height, channels };
}

function toByte(sum) {
  return Math.min(255, Math.max(0, sum >> FRACTION_BITS));
}

/**
 * For each new pixel along one side, the first old pixel that counts and the weights from there on.
 *
 * The weights fall linearly from the centre of the new pixel to the centres of its neighbours; they
 * are scaled to a sum of 1 and rounded to fixed point. An enlarged picture has neighbours one old
 * pixel apart.
 *
 * @param low, high the part of the old side that is kept; numbers of single precision in Pillow.
 */
function windows(oldSide, newSide, low, high) {
  const [begin, end] = [Math.fround(low), Math.fround(high)];
  const scale = Math.fround(end - begin) / newSide;
  const reach = Math.max(scale, 1);
  const slope = 1 / reach;
  return Array.from({ length: newSide }, (_, index) => {
    const center = begin + (index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - reach + 0.5));
    const stop = Math.min(oldSide, Math.trunc(center + reach + 0.5));
    const weights = Array.from({ length: stop - start }, (_, k) =>
      Math.max(0, 1 - Math.abs((k + start - center + 0.5) * slope)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return {
      start,
      weights: Int32Array.from(weights, (weight) =>
        Math.trunc((weight / total) * 2 ** FRACTION_BITS + 0.5)),
    };
  });
}
