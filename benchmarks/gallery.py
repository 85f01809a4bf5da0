"""`python -m benchmarks.gallery MODEL EMBEDDINGS [--rows N ...]`: a gallery beside faiss and numpy.

EMBEDDINGS is what `twinlens embed MODEL DATA` writes. Each identity of a gallery is one of these
pictures (taken again, a step away, where there are fewer), and its 10 templates are that picture's
embedding plus random steps with the covariance that pictures of one thing have in EMBEDDINGS,
normalised where the model compares directions. Probes are templates plus half a step.

Prints, for each size: enrol rate, seconds of `optimize`, and, each in a process of its own without
torch and in turns: seconds to open, the median and 99th percentile of one question, the
processor's milliseconds for it, recall of the nearest and of the 10 nearest against exact search,
resident memory (`own`: without mapped files), bytes on disk; ours beside faiss's IVF_FLAT (with the
fewest partitions searched that reach the same recall) and one numpy array. `same verdicts` is the
share of probes, half of them of strangers, with the answer of exact search, at the threshold that
accepts 1 % of the strangers. Then a reader while another process enrols a template every quarter of
a second: questions that first see a new version, and others; and the processor's time of the first
question after an enrolment, a compaction, a new name, an erasure. For a large gallery, the size of
an index of 10 million, and the time of a question that compares as many codes as that would. Then
the time of an erasure, at the smallest size.

Prediction for a million, before the index held codes: 6 ms instead of 14, most of it Lance's own
planning; faiss 5 times as fast, with all vectors in memory and no names.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PROBES, WARM, K = 500, 50, 10
PER_IDENTITY = 10
MOST_PARTITIONS = 256
RECALL = 0.95
STRANGER_RATE = 0.01
READ_SECONDS, PAUSE = 12, 0.25
LARGE, LARGE_PARTITIONS, LARGE_PROBES = 10_000_000, 1024, 16
"""The size by calculation: twice the partitions that a million in 1,000 needed for the recall."""


# --- what is enrolled ---


def real(file: Path) -> tuple[str, Floats, NDArray[np.int64]]:
    """The model's fingerprint, embeddings of real pictures, and which of them are of one thing."""
    import pyarrow.parquet as pq

    rows = pq.read_table(file)
    emb_ND = np.stack(rows["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32)
    _, label_N = np.unique(rows["identity"].to_numpy(zero_copy_only=False), return_inverse=True)
    return rows.schema.metadata[b"twinlens.fingerprint"].decode(), emb_ND, label_N


def spread(emb_ND: Floats, label_N: NDArray[np.int64]) -> Floats:
    """Turns standard normal steps into those between pictures of one thing, shape (D, D)."""
    count = np.bincount(label_N)
    mean = np.stack([np.bincount(label_N, column) for column in emb_ND.T], 1) / count[:, None]
    step_ND = emb_ND - mean[label_N]
    covariance = step_ND.T @ step_ND / (len(emb_ND) - len(count))
    value, vector = np.linalg.eigh(covariance)
    return (vector * np.sqrt(np.maximum(value, 0))).T.astype(np.float32)


def templates(
    emb_ND: Floats, steps: Floats, num: int, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.int64]]:
    """Templates (M, D) and the number of each one's identity, a picture with a round of steps."""
    num_identities = -(-num // PER_IDENTITY)
    picture = rng.integers(0, len(emb_ND), num_identities)
    centre = emb_ND[picture]
    if num_identities > len(emb_ND):  # The same picture again is somebody else, a step away.
        centre = centre + rng.standard_normal(centre.shape, dtype=np.float32) @ steps
    code = np.arange(num) // PER_IDENTITY
    result = np.empty((num, emb_ND.shape[1]), np.float32)
    for start in range(0, num, 100_000):
        part = code[start : start + 100_000]
        step = rng.standard_normal((len(part), emb_ND.shape[1]), dtype=np.float32) @ steps
        result[start : start + 100_000] = centre[part] + step
    return result, code


def normalised(emb_ND: Floats) -> Floats:
    return emb_ND / np.linalg.norm(emb_ND, axis=1, keepdims=True)


# --- one process each, started again for each turn ---


def memory() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text().splitlines()
    result = dict(line.split(":", 1) for line in lines if ":" in line)
    kinds = {"resident": "VmRSS", "own": "RssAnon", "peak": "VmHWM"}
    return {name: int(result[key].split()[0]) / 1024 for name, key in kinds.items()}


def asked(question: Callable[[Floats], Any], probe_PD: Floats) -> dict[str, Any]:
    """Milliseconds of one question, and what this process keeps in memory."""
    start = time.perf_counter()
    question(probe_PD[0])
    first = time.perf_counter() - start
    for probe_D in probe_PD[:WARM]:
        question(probe_D)
    seconds, busy = [], time.process_time()
    for probe_D in probe_PD:
        start = time.perf_counter()
        question(probe_D)
        seconds.append(time.perf_counter() - start)
    busy = 1000 * (time.process_time() - busy) / len(probe_PD)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {"first": 1000 * first, "p50": p50, "p99": p99, "cpu": busy, **memory()}


def share(found_PK: NDArray[Any], true_PK: NDArray[Any]) -> float:
    pairs = zip(found_PK, true_PK, strict=True)
    return float(np.mean([len(set(a) & set(b)) / K for a, b in pairs]))


def first(found_PK: NDArray[Any], true_PK: NDArray[Any]) -> float:
    return float(np.mean(found_PK[:, 0] == true_PK[:, 0]))


def ours(work: Path, place: str, probe_PD: Floats, true_PK: NDArray[Any]) -> dict[str, Any]:
    start = time.perf_counter()
    from twinlens.gallery.gallery import Gallery

    imported = time.perf_counter()
    gallery = Gallery.open(place)
    opened = time.perf_counter()
    result = {"import": imported - start, "open": opened - imported}
    result |= asked(gallery.identify_embedding, probe_PD)
    assert "torch" not in sys.modules
    hits = [[int(hit.hash, 16) for hit in gallery.search_embedding(one, k=K)] for one in probe_PD]
    result |= {"recall@1": first(np.array(hits), true_PK), "recall": share(np.array(hits), true_PK)}
    dist_P, is_stranger_P = np.load(work / "distance.npy"), np.load(work / "stranger.npy")
    name_P = np.load(work / "nearest.npy")
    threshold = np.quantile(dist_P[is_stranger_P], STRANGER_RATE)
    answers = [gallery.nearest(one, 1)[0] for one in np.load(work / "both.npy")]
    same = [
        (answer.distance <= threshold, answer.identity) == (true <= threshold, name)
        or min(answer.distance, true) > threshold
        for answer, true, name in zip(answers, dist_P, name_P, strict=True)
    ]
    return result | {"same verdicts": float(np.mean(same))}


def at_large(work: Path, place: str, probe_PD: Floats, true_PK: NDArray[Any]) -> dict[str, Any]:
    """A question that compares as many codes as one of the large size does."""
    from twinlens.gallery.gallery import Gallery

    gallery = Gallery.open(place)
    nprobes = LARGE * LARGE_PROBES // LARGE_PARTITIONS * gallery.store.num_partitions()
    nprobes //= len(gallery)
    return asked(
        lambda one: gallery.store.nearest(one, 32, columns=["identity", "path"], nprobes=nprobes),
        probe_PD,
    )


def reader(work: Path, place: str, probe_PD: Floats, true_PK: NDArray[Any]) -> dict[str, Any]:
    """Milliseconds of questions, and of those that first see a new version."""
    from twinlens.gallery.gallery import Gallery

    gallery = Gallery.open(place)
    asked(gallery.identify_embedding, probe_PD[:WARM])
    last, rows = gallery.store.version, []
    words = [sys.executable, "-m", "benchmarks.gallery", "--child", "writer", str(work), place]
    writing = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while writing.poll() is None:
        version = gallery.store.version
        start, busy = time.perf_counter(), time.process_time()
        gallery.identify_embedding(probe_PD[len(rows) % len(probe_PD)])
        seconds = time.perf_counter() - start, time.process_time() - busy
        rows.append((*seconds, version != last))
        last = version
        time.sleep(0.005)
    table = np.array(rows) * 1000
    new, old = table[table[:, 2] > 0], table[table[:, 2] == 0]
    names = {"same version": old, "new version": new}
    return {"new versions": len(new)} | {
        f"{name} {what}": float(np.quantile(part[:, column], quantile))
        for name, part in names.items()
        for what, column, quantile in (("p50", 0, 0.5), ("max", 0, 1), ("cpu", 1, 0.5))
    }


def changes(work: Path, place: str, probe_PD: Floats, true_PK: NDArray[Any]) -> dict[str, Any]:
    """Processor's milliseconds of the first query after a change, median and highest."""
    from twinlens.gallery.gallery import Gallery

    gallery, writing, rng = Gallery.open(place), Gallery.open(place), np.random.default_rng()
    asked(gallery.identify_embedding, probe_PD[:WARM])

    def enrol(num: int = 1) -> None:
        for _ in range(num):
            emb_ND = rng.standard_normal((1, gallery.dim), dtype=np.float32)
            writing.enrol_embeddings(emb_ND, ["enrolled later"], fingerprint=gallery.fingerprint)

    def compact() -> None:
        enrol(10)
        gallery.identify_embedding(probe_PD[0])
        writing.store.compact()

    names = iter(f"identity {number:07d}" for number in itertools.count(len(gallery) // 20))
    what: dict[str, tuple[int, Callable[[], object]]] = {
        "none": (20, lambda: None), "enrolment": (20, enrol), "compaction": (3, compact),
        "rename": (3, lambda: writing.rename(next(names), str(rng.integers(10**12)))),
        "erasure": (3, lambda: writing.erase(next(names))),
    }  # fmt: skip
    result = {}
    for name, (times, change) in what.items():
        rows = []
        for _ in range(times):
            change()
            busy = time.process_time()
            gallery.identify_embedding(probe_PD[0])
            rows.append(1000 * (time.process_time() - busy))
        result |= {f"{name} p50": statistics.median(rows), f"{name} max": max(rows)}
    return result


def writer(work: Path, place: str, probe_PD: Floats, true_PK: NDArray[Any]) -> dict[str, Any]:
    from twinlens.gallery.gallery import Gallery

    gallery, seconds = Gallery.open(place), []
    rng, end = np.random.default_rng(), time.monotonic() + READ_SECONDS
    while time.monotonic() < end:
        emb_ND = rng.standard_normal((1, gallery.dim), dtype=np.float32)
        start = time.perf_counter()
        gallery.enrol_embeddings(emb_ND, ["enrolled later"], fingerprint=gallery.fingerprint)
        seconds.append(time.perf_counter() - start)
        time.sleep(PAUSE)
    return {"enrol": 1000 * statistics.median(seconds)}


def with_faiss(work: Path, place: str, probe_PD: Floats, true_PK: NDArray[Any]) -> dict[str, Any]:
    import faiss

    faiss.omp_set_num_threads(1)
    emb = np.load(work / "templates.npy")
    partitions = min(MOST_PARTITIONS, max(1, len(emb) // 4000))
    start = time.perf_counter()
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(emb.shape[1]), emb.shape[1], partitions)
    index.train(emb[:: max(1, len(emb) // (256 * partitions))])
    index.add(emb)
    built = time.perf_counter() - start
    del emb
    for index.nprobe in range(1, partitions + 1):
        recall = share(index.search(probe_PD, K)[1], true_PK)
        if recall >= RECALL:
            break
    result = asked(lambda probe_D: index.search(probe_D[None], K), probe_PD)
    top = first(index.search(probe_PD, K)[1], true_PK)
    return result | {"recall@1": top, "recall": recall, "nprobe": index.nprobe, "build": built}


def with_numpy(work: Path, place: str, probe_PD: Floats, true_PK: NDArray[Any]) -> dict[str, Any]:
    emb = np.load(work / "templates.npy")
    square = np.einsum("md,md->m", emb, emb)

    def question(probe_D: Floats) -> NDArray[Any]:
        near = square - 2 * (emb @ probe_D)
        best = np.argpartition(near, K)[:K]
        return best[np.argsort(near[best])]

    result = asked(question, probe_PD[:200])
    hits = np.array([question(probe_D) for probe_D in probe_PD[:200]])
    return result | {"recall": share(hits, true_PK[:200])}


CHILDREN = {
    "gallery": ours, "faiss": with_faiss, "numpy": with_numpy, "large": at_large,
    "reader": reader, "writer": writer, "changes": changes,
}  # fmt: skip


def child(name: str, work: Path, place: str) -> dict[str, Any]:
    """Run one of them in a new process."""
    words = [sys.executable, "-m", "benchmarks.gallery", "--child", name, str(work), place]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


# --- the table ---


def fill(place: Path, model: Path, fingerprint: str, emb: Floats, code: NDArray[Any]) -> Any:
    from twinlens.gallery.gallery import Gallery

    gallery = Gallery.create(place, model)
    start, part = time.perf_counter(), 50_000
    for at in range(0, len(emb), part):
        rows = range(at, min(at + part, len(emb)))
        gallery.enrol_embeddings(
            emb[at : at + part],
            [f"identity {number:07d}" for number in code[at : at + part]],
            fingerprint=fingerprint,
            path=[f"/pictures/{row}.png" for row in rows],
            hash=[f"{row:032x}" for row in rows],
        )
    seconds = time.perf_counter() - start
    print(f"  enrolled {len(emb) / seconds:,.0f} templates/s, {seconds:.1f} s", flush=True)
    print(f"  {gallery.optimize().as_text()}", flush=True)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    print(f"  {size / 1e6:,.0f} MB on disk; the vectors alone are {emb.nbytes / 1e6:,.0f} MB")
    return gallery


def exact(emb: Floats, probe_PD: Floats) -> NDArray[np.int64]:
    """The rows of the K nearest of each probe, shape (P, K)."""
    square = np.einsum("md,md->m", emb, emb)
    result = []
    for start in range(0, len(probe_PD), 50):
        near = square - 2 * probe_PD[start : start + 50] @ emb.T
        best = np.argpartition(near, K, axis=1)[:, :K]
        order = np.argsort(np.take_along_axis(near, best, axis=1), axis=1)
        result.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(result)


def turns(work: Path, place: Path, rounds: int, names: list[str]) -> None:
    """Ask in turns, A B C A B C; print medians, the lowest and the highest."""
    result: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            result[name].append(child(name, work, str(place)))
    for name, runs in result.items():
        print(f"  {name:8}" + "".join(f"  {key} {_spread(runs, key)}" for key in runs[0]))
    for name in names[1:]:
        for key in ("p50", "cpu", "own"):
            pairs = zip(result[name], result["gallery"], strict=True)
            ratios = sorted(own[key] / peer[key] for peer, own in pairs)
            middle = statistics.median(ratios)
            print(
                f"  {key} of gallery / {name}: {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


def _spread(runs: list[dict[str, Any]], key: str) -> str:
    values = sorted(run[key] for run in runs)
    digits = 0 if values[-1] >= 100 else 3 if values[-1] < 1 else 2
    low, middle, high = values[0], statistics.median(values), values[-1]
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def erasures(gallery: Any, rounds: int) -> None:
    runs = [gallery.erase(f"identity {number:07d}").as_json() for number in range(rounds)]
    print(f"  erase, of {runs[0]['num_left']:,} templates: seconds {_spread(runs, 'seconds')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="a folder for the galleries; a temporary one")
    parser.add_argument("--no-faiss", action="store_true")
    args = parser.parse_args()
    names = ["gallery", "faiss", "numpy"]
    if args.no_faiss:
        names.remove("faiss")
    elif not _has_faiss():
        raise SystemExit("faiss is not installed: `pip install faiss-cpu`, or give --no-faiss")
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        for num in args.rows:
            measure(args, num, names, Path(folder) / str(num))


def measure(args: argparse.Namespace, num: int, names: list[str], work: Path) -> None:
    work.mkdir()
    fingerprint, emb_ND, label_N = real(args.embeddings)
    rng, steps_DD = np.random.default_rng(num), spread(emb_ND, label_N)
    extra = PROBES * PER_IDENTITY
    both, code = templates(emb_ND, steps_DD, num + extra, rng)
    both, strange_PD, code = both[:num], both[num::PER_IDENTITY], code[:num]
    pick = rng.choice(num, PROBES, replace=False)
    steps = rng.standard_normal((PROBES, emb_ND.shape[1]), dtype=np.float32)
    probe_PD = both[pick] + 0.5 * steps @ steps_DD
    print(f"{num:,} templates of {code[-1] + 1:,} identities, D = {both.shape[1]}, from "
          f"{len(emb_ND):,} pictures of {label_N.max() + 1:,} things")  # fmt: skip
    gallery = fill(work / "gallery", args.model, fingerprint, both, code)
    all_PD = np.concatenate([probe_PD, strange_PD])
    if gallery.state().settings.comparator == "cosine":
        both, all_PD = normalised(both), normalised(all_PD)
    probe_PD, true_PK = all_PD[:PROBES], exact(both, all_PD)
    nearest_P = true_PK[:, 0]
    saved = {
        "templates": both, "probes": probe_PD, "true": true_PK[:PROBES], "both": all_PD,
        "distance": gallery.lookup.comparison.pairwise(all_PD, both[nearest_P]),
        "nearest": np.array([f"identity {number:07d}" for number in code[nearest_P]]),
        "stranger": np.arange(len(all_PD)) >= PROBES,
    }  # fmt: skip
    for name, array in saved.items():
        np.save(work / f"{name}.npy", array)
    del both, saved
    turns(work, work / "gallery", args.rounds, names)
    large(gallery, work)
    lines = child("reader", work, str(work / "gallery"))
    print("  while another process enrols:" + _listed(lines))
    changed = child("changes", work, str(work / "gallery"))
    print("  first query after a change, ms of the processor:" + _listed(changed))
    if num == min(args.rows):
        erasures(gallery, args.rounds)


def large(gallery: Any, work: Path) -> None:
    """Print the index of the large size: its memory by calculation, its time by as much work."""
    files = list(Path(gallery.place).glob("templates.lance/_indices/*/auxiliary.idx"))
    if files:
        size = sum(path.stat().st_size for path in files) / len(gallery)
        print(f"  {size:.0f} bytes of codes a template, {LARGE * size / 1e6:,.0f} MB for {LARGE:,}")
        values = child("large", work, str(work / "gallery"))
        partitions = f"{LARGE_PROBES} of {LARGE_PARTITIONS} partitions"
        print(f"  comparing as many codes as {partitions} of these:" + _listed(values))


def _listed(values: dict[str, Any]) -> str:
    return "".join(f"  {name} {value:.1f}" for name, value in values.items())


def _has_faiss() -> bool:
    from importlib.util import find_spec

    return find_spec("faiss") is not None


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        what, folder, where = sys.argv[2:]
        probes, truth = (np.load(Path(folder) / f"{name}.npy") for name in ("probes", "true"))
        print(json.dumps(CHILDREN[what](Path(folder), where, probes, truth)))
    else:
        main()
