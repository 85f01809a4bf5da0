/**
 * Files, and frames of a camera -> rasters (see pixels.js).
 *
 * The browser decodes a file at its full size, without colour management and with the orientation
 * of EXIF applied. A canvas multiplies colours by alpha, which loses bits; pixels of transparent
 * pictures are therefore read through WebGL.
 */

const AS_STORED = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
const JPEG_START = [0xff, 0xd8, 0xff];

/**
 * A file as {raster, isJpeg, isExact}.
 *
 * isExact is false if the browser cannot give the pixels of a transparent picture unchanged.
 */
export async function decodeFile(file) {
  const start = new Uint8Array(await file.slice(0, JPEG_START.length).arrayBuffer());
  const isJpeg = JPEG_START.every((byte, i) => byte === start[i]);
  const bitmap = await createImageBitmap(file, { ...AS_STORED, imageOrientation: "from-image" });
  try {
    const drawn = drawnPixels(bitmap);
    const exact = isOpaque(drawn.pixels) ? drawn : webglPixels(bitmap);
    return { raster: exact ?? drawn, isJpeg, isExact: exact !== null };
  } finally {
    bitmap.close();
  }
}

/** The current frame of a video as a raster. */
export function decodeFrame(video) {
  return drawnPixels(video, video.videoWidth, video.videoHeight);
}

function drawnPixels(source, width = source.width, height = source.height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.drawImage(source, 0, 0);
  const pixels = new Uint8Array(context.getImageData(0, 0, width, height).data.buffer);
  return { pixels, width, height, channels: 4 };
}

function isOpaque(pixels) {
  for (let i = 3; i < pixels.length; i += 4) if (pixels[i] !== 255) return false;
  return true;
}

/** The pixels of a bitmap, read from a texture; null if WebGL is missing or the bitmap too large. */
function webglPixels(bitmap) {
  const { width, height } = bitmap;
  const gl = document.createElement("canvas").getContext("webgl");
  if (gl === null || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(
    gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const pixels = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  const failed = gl.getError() !== gl.NO_ERROR;
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return failed ? null : { pixels, width, height, channels: 4 };
}
