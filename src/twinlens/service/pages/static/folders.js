// Names of folders become identities.

const SPLITS = new Set(["train", "val", "valid", "validation", "test"]);

/** Whether a path has the ending of a picture, and neither it nor a folder is hidden. */
export function isPicture(path, suffixes) {
  const name = path.slice(path.lastIndexOf("/") + 1).toLowerCase();
  const dot = name.lastIndexOf(".");
  return dot > 0 && suffixes.has(name.slice(dot)) && !path.split("/").some((one) => one.startsWith("."));
}

/**
 * Identities of pictures by their folders.
 *
 * A folder around all others has no meaning; pictures directly in it are unsorted. So have the folders
 * train, val and test, if there are no others.
 * @param {{file: File, path: string}[]} files
 * @param {string | null} named identity of pictures without a folder
 * @returns pictures with `identity`, and `folder`: the name of the only folder, if there are no others.
 */
export function plan(files, named) {
  let folders = files.map((one) => one.path.split("/").slice(0, -1));
  const only = new Set(folders.map((parts) => parts[0])).size === 1 ? folders[0][0] : undefined;
  const isDeep = folders.some((parts) => parts.length > 1);
  if (only !== undefined && isDeep) folders = folders.map((parts) => parts.slice(1));
  if (folders.every((parts) => SPLITS.has(parts[0]?.toLowerCase()))) folders = folders.map((parts) => parts.slice(1));
  const pictures = files.map((one, at) => ({ ...one, identity: folders[at].join("/") || named }));
  const isOne = only !== undefined && !isDeep && !SPLITS.has(only.toLowerCase());
  return { pictures, folder: isOne ? only : null };
}

/** The files of a drop, those in its folders included, with their paths. */
export async function readDropped(transfer) {
  // Entries are gone after the first pause.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, path: file.name }));
  const files = [];
  for (const entry of entries) await walk(entry, files);
  return files;
}

async function walk(entry, files) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject)).catch(() => null);
    if (file) files.push({ file, path: entry.fullPath.replace(/^\//, "") });
    return;
  }
  const reader = entry.createReader();
  const read = () => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
  // Each call gives some hundred entries at most.
  for (let some = await read(); some.length; some = await read()) {
    for (const one of some) await walk(one, files);
  }
}
