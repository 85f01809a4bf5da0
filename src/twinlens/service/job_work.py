"""Work of each kind of job: calls of the public functions, and the result as plain data."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from twinlens.clusters.layout import SINGLE
from twinlens.data.table import ImageTable
from twinlens.face.layout import target_paths
from twinlens.files import write_text
from twinlens.model.stored import read_description
from twinlens.parsing import read_json
from twinlens.progress import Progress, console_log
from twinlens.service.job_arguments import (
    AuditArguments,
    CalibrateArguments,
    ClusterArguments,
    ExportArguments,
    FacesArguments,
    ImportArguments,
    TrainArguments,
)
from twinlens.service.picture_sets import PictureSets
from twinlens.service.settings import ServiceSettings

__all__ = ["EXPORT", "GROUPS", "UPLOAD", "WORK", "WorkInterruptedError", "WorkPlace",
           "warn_of_contradictions"]  # fmt: skip

UPLOAD, GROUPS, CLUSTERS, EXPORT = "upload.parquet", "groups.json", "clusters", "export"
AUDIT, FACES = "audit", "faces"
MAX_SKIPPED = 1000  # pictures in a result
MAX_FINDINGS = 1000

log = logging.getLogger("twinlens")


class WorkInterruptedError(Exception):
    """The work was interrupted, and has a result all the same.

    Args:
        result: plain data.
    """

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__("interrupted")
        self.result = result


@dataclass(frozen=True)
class WorkPlace:
    """Places of a job.

    Attributes:
        folder: of the job.
        places: `device`, and `model`, `gallery` or `run`, as far as the job has one.
    """

    folder: Path
    places: Mapping[str, str]

    def table(self, pictures: str) -> ImageTable:
        """The labelled pictures of a set."""
        return self.sets().table(pictures)

    def unsorted(self, pictures: str) -> ImageTable:
        """The unsorted pictures of a set."""
        return self.sets().unsorted(pictures)

    def sets(self) -> PictureSets:
        """All picture sets of the service."""
        return PictureSets(ServiceSettings(data=self.folder.parent.parent))


def _train(arguments: TrainArguments, place: WorkPlace) -> dict[str, Any]:
    from twinlens.commands.train import train
    from twinlens.learn.run_folder import RunFolder

    run = Path(place.places["run"])
    matcher = train(
        place.table(arguments.pictures), out=run, recipe=arguments.recipe,
        settings=arguments.overrides(), resume=run.is_dir() and any(run.iterdir()),
    )  # fmt: skip
    calibration = matcher.calibration
    result = {
        "run": run.name,
        "calibration": None if calibration is None else calibration.as_json(),
        "results": _results(run / "results.json"),
        "report": (run / "report.html").is_file(),
    }
    if not RunFolder(run).finished:
        raise WorkInterruptedError(result)
    return result


def _results(file: Path) -> dict[str, Any] | None:
    return dict(read_json(file)) if file.is_file() else None


def warn_of_contradictions(sets: PictureSets, name: str) -> None:
    """Log a warning of copies under several identities, if an inspection knows of any."""
    inspection = sets.known_inspection(name)
    num = 0 if inspection is None else len(inspection["contradictions"])
    if num:
        with console_log():
            log.warning(
                "the set %s has pictures under several identities (%d), which moves the threshold: "
                "name each once, then calibrate again", name, num,
            )  # fmt: skip


def _calibrate(arguments: CalibrateArguments, place: WorkPlace) -> dict[str, Any]:
    table = None if arguments.pictures is None else place.table(arguments.pictures)
    if arguments.pictures is not None:
        warn_of_contradictions(place.sets(), arguments.pictures)
    if arguments.gallery is None:
        from twinlens.commands.calibrate import calibrate

        assert table is not None
        matcher = calibrate(
            place.places["model"], table, far=arguments.far, split=arguments.split,
            seed=arguments.seed, device=place.places["device"],
        )  # fmt: skip
        assert matcher.calibration is not None
        return {"model": arguments.model, "calibration": matcher.calibration.as_json()}
    from twinlens.gallery.gallery import Gallery

    with console_log():
        gallery = Gallery.open(place.places["gallery"], device=place.places["device"])
        calibration = gallery.calibrate(
            table, fpir=arguments.fpir, seed=arguments.seed,
            progress=Progress("calibrating", "probes"),
        )  # fmt: skip
    return {"gallery": arguments.gallery, "calibration": calibration.as_json()}


def _cluster(arguments: ClusterArguments, place: WorkPlace) -> dict[str, Any]:
    from twinlens.commands.cluster import cluster

    out = place.folder / CLUSTERS
    shutil.rmtree(out, ignore_errors=True)
    if arguments.labelled:
        table = place.table(arguments.pictures)
    else:
        table = place.unsorted(arguments.pictures)
    result = cluster(
        place.places["model"], table, out=out, threshold=arguments.threshold,
        min_size=arguments.min_size, labelled=arguments.labelled, device=place.places["device"],
    ).as_json()  # fmt: skip
    with (out / "clusters.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        doubt = float(row["distance"]) if row["distance"] else None
        groups.setdefault(row["cluster"], []).append({"picture": row["path"], "distance": doubt})
    single = groups.pop(SINGLE, [])
    named = [
        {"group": name, "pictures": groups[name]}
        for name in sorted(groups, key=lambda name: (-len(groups[name]), name))
    ]
    text = json.dumps({"groups": named, "single": single})
    write_text(place.folder / GROUPS, text)
    return {name: value for name, value in result.items() if name not in ("out", "report", "list")}


def _import(arguments: ImportArguments, place: WorkPlace) -> dict[str, Any]:
    from twinlens.gallery.gallery import Gallery

    with console_log():
        gallery = Gallery.open(place.places["gallery"], device=place.places["device"])
        if arguments.pictures is None:
            result = gallery.import_file(
                place.folder / UPLOAD, progress=Progress("importing", "templates")
            )
        else:
            result = gallery.enrol(
                place.table(arguments.pictures), keep_thumbnails=arguments.thumbnails,
                min_quality=arguments.min_quality, progress=Progress("enrolling"),
            )  # fmt: skip
    return {
        "gallery": arguments.gallery,
        "new": result.num_new,
        "known": result.num_known,
        "identities": result.num_identities,
        "failed": result.num_failed,
        "num_skipped": len(result.skipped),
        "skipped": [
            {"picture": PurePath(one.path).name, "reason": one.reason}
            for one in result.skipped[:MAX_SKIPPED]
        ],
    }


def _export(arguments: ExportArguments, place: WorkPlace) -> dict[str, Any]:
    from twinlens.commands.export import export

    out = place.folder / EXPORT
    shutil.rmtree(out, ignore_errors=True)
    pictures = arguments.pictures
    if pictures is None:
        origin = read_description(Path(place.places["model"])).origin
        if origin is not None and origin.source in place.sets().names():
            pictures = origin.source
    result = export(
        place.places["model"], out, format=arguments.format, resize=arguments.resize,
        data=None if pictures is None else place.table(pictures),
    ).as_json()  # fmt: skip
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {name: value for name, value in result.items() if name != "path"} | {
        "model": arguments.model,
        "files": [
            {"name": path.relative_to(out).as_posix(), "bytes": path.stat().st_size}
            for path in files
        ],
    }


def _audit(arguments: AuditArguments, place: WorkPlace) -> dict[str, Any]:
    from twinlens.commands.audit import audit

    out = place.folder / AUDIT
    shutil.rmtree(out, ignore_errors=True)
    result = audit(
        place.table(arguments.pictures), out=out, model=place.places.get("model"),
        seed=arguments.seed, device=place.places["device"],
    ).as_json()  # fmt: skip
    findings = result["findings"][:MAX_FINDINGS]
    return {name: value for name, value in result.items() if name not in ("page", "list")} | {
        "source": arguments.pictures, "findings": findings,
    }  # fmt: skip


def _faces(arguments: FacesArguments, place: WorkPlace) -> dict[str, Any]:
    from twinlens.commands.faces import faces
    from twinlens.face.detectors import cached_yunet

    model, sets = cached_yunet(), place.sets()
    counts: dict[str, Any] = {}
    for is_labelled in (True, False):
        if not (sets.identities(arguments.pictures) if is_labelled
                else sets.num_unsorted(arguments.pictures)):  # fmt: skip
            continue
        table = (place.table if is_labelled else place.unsorted)(arguments.pictures)
        out = place.folder / FACES
        shutil.rmtree(out, ignore_errors=True)
        result = faces(
            table, out, detector="haar" if model is None else "yunet", model=model,
            keep="largest" if is_labelled else "all", margin=arguments.margin, workers=1,
        )  # fmt: skip
        if is_labelled:  # In the order of the table, as `faces` has written them.
            crops = list(zip(target_paths(table, table), table.identity, strict=True))
        else:
            crops = [(file, None) for file in sorted(out.rglob("*.face*.*"))]
        for file, identity in crops:
            if (out / file).is_file():
                sets.add(arguments.into, identity, file.name, (out / file).read_bytes())
        shutil.rmtree(out, ignore_errors=True)
        for name in ("pictures", "faces", "several", "low_score", "without", "broken"):
            counts[name] = counts.get(name, 0) + getattr(result, name)
    return {"set": arguments.into, "detector": "haar" if model is None else "yunet"} | counts


WORK: dict[str, Callable[[Any, WorkPlace], dict[str, Any]]] = {
    "train": _train,
    "calibrate": _calibrate,
    "cluster": _cluster,
    "import": _import,
    "export": _export,
    "audit": _audit,
    "faces": _faces,
}
"""Function by kind of job."""
