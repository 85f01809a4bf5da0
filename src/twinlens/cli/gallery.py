"""The commands of galleries: `twinlens gallery ...`, `twinlens identify`, `twinlens search`.

A subcommand of `gallery` is a method of `gallery.gallery.Gallery`. Subcommands that embed nothing
open no graph.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import twinlens
from twinlens.cli.arguments import (
    DATA_HELP,
    MODEL_HELP,
    Parser,
    as_is_argument,
    data_argument,
    device_argument,
    json_argument,
    print_result,
    quality_argument,
    quiet_argument,
    root_argument,
    show_argument,
    values_of,
)
from twinlens.errors import ConfigError, message_lines
from twinlens.files import check_output_file

if TYPE_CHECKING:
    from twinlens.gallery.gallery import Gallery
    from twinlens.gallery.results import EnrolResult

__all__ = ["GALLERY_COMMANDS", "add_gallery", "add_identify", "add_search", "show_identifications"]

log = logging.getLogger("twinlens")

WHERE_HELP = "condition on templates, such as \"identity = 'anna'\" or \"metadata.room = 'north'\""


def add_gallery(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `twinlens gallery`."""
    commands = parser.add_subparsers(metavar="SUBCOMMAND", required=True, parser_class=Parser)
    for name, (summary, add_arguments, call) in GALLERY_COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        _add_place(command)
        add_arguments(command)
        json_argument(command)
        command.set_defaults(run=partial(_run, call))


def _run(call: Callable[..., Any], args: argparse.Namespace) -> int:
    from twinlens.progress import console_log

    values = values_of(args)
    place, quiet = values.pop("gallery"), values.pop("quiet", False)
    with console_log(quiet):
        return print_result(call(place, **values), args)


def _add_place(parser: argparse.ArgumentParser) -> None:
    # No Path, which would make `s3:/bucket` of `s3://bucket`.
    parser.add_argument("gallery", metavar="GALLERY", help="folder of a gallery, or s3://...")


# --- writing ------------------------------------------------------------------------------------


def _add_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, metavar="MODEL",
                        help=f"{MODEL_HELP}; the gallery gets a copy")  # fmt: skip
    parser.add_argument("--shards", type=int, metavar="N",
                        help="spread identities over N galleries inside, queried as one",
                        )  # fmt: skip


def _create(place: str, **values: Any) -> Any:
    return twinlens.Gallery.create(place, **values).info()


def _join(place: str) -> Any:
    return twinlens.Gallery.join(place).info()


def _add_enrol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", nargs="*", help=f"{DATA_HELP}; or FILES")
    root_argument(parser)
    parser.add_argument("--identity", metavar="NAME", help="identity of all FILES")
    parser.add_argument("--metadata", action="append", default=[], metavar="KEY=VALUE",
                        help="metadata of every picture, to search by; may be repeated",
                        )  # fmt: skip
    parser.add_argument("--keep-thumbnails", action="store_true",
                        help="store small pictures in the gallery too")  # fmt: skip
    quality_argument(parser)
    as_is_argument(parser)
    device_argument(parser)
    quiet_argument(parser)


def _enrol(
    place: str,
    data: Sequence[str],
    identity: str | None,
    root: Path | None,
    metadata: Sequence[str],
    device: str,
    as_is: bool,
    **values: Any,
) -> EnrolResult:
    from twinlens.progress import Progress

    values |= {"metadata": dict(map(_key_and_value, metadata)), "progress": Progress("enrolling")}
    if identity is None:
        if len(data) != 1:
            raise ConfigError(
                f"enrol needs one DATA ({DATA_HELP}), or --identity NAME and its files; found "
                f"{len(data)} words after GALLERY"
            )
        gallery = twinlens.Gallery.open(place, device=device, as_is=as_is)
        return _finish_enrolment(gallery, gallery.enrol(data[0], root=root, **values))
    if root is not None:
        raise ConfigError("--root belongs to DATA: leave it out with --identity")
    if not data:
        raise ConfigError("--identity NAME needs one file or more of that identity")
    gallery = twinlens.Gallery.open(place, device=device, as_is=as_is)
    return _finish_enrolment(gallery, gallery.enrol_files(identity, data, **values))


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--metadata needs KEY=VALUE, such as room=north; found '{text}'")
    if "'" in key or '"' in key:
        raise ConfigError(f"a key of --metadata has no quotes, found {key.strip()}: leave them out")
    return key.strip(), value


def _finish_enrolment(gallery: Gallery, result: EnrolResult) -> EnrolResult:
    """Warn of skipped pictures and of an outdated threshold; build an index if needed.

    Raises:
        DataError: nothing was enrolled.
    """
    for warning in result.warnings():
        log.warning(warning)
    result.require_some()
    if result.num_new and (outgrown := gallery.calibration_outgrown()):
        log.warning(outgrown)
    if result.num_new and gallery.needs_index():
        log.info("the gallery has outgrown its index: building one")
        log.info(_optimize(gallery.place).as_text())
    return result


def _add_erase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("identity", metavar="IDENTITY", help="a name from `gallery list`")


def _erase(place: str, **values: Any) -> Any:
    return twinlens.Gallery.open(place).erase(**values)


def _add_rename(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", metavar="OLD", help="present name")
    parser.add_argument("new", metavar="NEW", help="new name")
    parser.add_argument("--merge", action="store_true", help="allow NEW to be enrolled already")


def _rename(place: str, **values: Any) -> Any:
    from twinlens.gallery.results import RenameResult

    return RenameResult(twinlens.Gallery.open(place).rename(**values))


def _add_optimize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--partitions", type=int, metavar="N",
                        help="partitions of the index; 0 for none (default: by size)")  # fmt: skip
    parser.add_argument("--recall", dest="target_recall", type=float, default=0.95,
                        metavar="SHARE", help="share of the true 10 nearest that the index must "
                        "find (0.95)")  # fmt: skip
    quiet_argument(parser)


def _optimize(place: str, **values: Any) -> Any:
    from twinlens.progress import Progress

    gallery = twinlens.Gallery.open(place)
    return gallery.optimize(**values, progress=Progress("optimizing", "steps"))


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    data_argument(parser, nargs="?")
    parser.add_argument("--fpir", type=float, default=0.01, metavar="SHARE",
                        help="false positive identification rate: share of strangers that are "
                        "identified (0.01)")  # fmt: skip
    parser.add_argument("--rule", default="auto", metavar="NAME",
                        help="fusion of an identity's templates: nearest, mean, vote, or auto: "
                        "the best")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0,
                        help="random seed for probes and bootstrap (0)")  # fmt: skip
    device_argument(parser)
    quiet_argument(parser)


def _calibrate(place: str, device: str, **values: Any) -> Any:
    from twinlens.gallery.results import GalleryCalibrationResult
    from twinlens.progress import Progress

    gallery = twinlens.Gallery.open(place, device=device)
    calibration = gallery.calibrate(**values, progress=Progress("calibrating", "probes"))
    pairs = gallery.state().pairs
    return GalleryCalibrationResult(calibration, None if pairs is None else pairs.threshold)


def _add_feedback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", metavar="PICTURE", nargs="*", default=(),
                        help="files for --is or --is-not")  # fmt: skip
    parser.add_argument("--is", dest="is_", metavar="ID",
                        help="enrolled identity that the pictures are of")  # fmt: skip
    parser.add_argument("--is-not", metavar="ID", help="identity that the pictures are not of")
    parser.add_argument("--same", nargs=2, metavar=("A", "B"), help="two files of one identity")
    parser.add_argument("--different", nargs=2, metavar=("A", "B"),
                        help="two files of different identities")  # fmt: skip
    parser.add_argument("--csv", type=Path, metavar="FILE",
                        help="file with the column picture and one or more of is, is_not, same_as, "
                        "different_from")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list the corrections")
    parser.add_argument("--undo", type=int, metavar="N", help="take correction N back")
    device_argument(parser)
    quiet_argument(parser)


def _feedback(place: str, device: str, *, list: bool, undo: int | None, **values: Any) -> Any:
    from twinlens.progress import Progress

    gallery = twinlens.Gallery.open(place, device=device)
    if list or undo is not None:
        if any(values.values()) or (list and undo is not None):
            raise ConfigError("--list and --undo N stand alone: give the rest to another command")
        return gallery.corrections() if undo is None else gallery.undo_feedback(undo)
    result = gallery.feedback(**values, progress=Progress("embedding"))
    for warning in result.warnings():
        log.warning(warning)
    result.require_some()
    return result


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="FILE", type=Path,
                        help="file of `twinlens gallery export`, or .parquet or .lance of "
                        "`twinlens embed` with the gallery's model")  # fmt: skip
    quiet_argument(parser)


def _import(place: str, **values: Any) -> EnrolResult:
    from twinlens.progress import Progress

    gallery = twinlens.Gallery.open(place)
    result = gallery.import_file(**values, progress=Progress("importing", "templates"))
    return _finish_enrolment(gallery, result)


def _add_rebuild(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, metavar="NEW", help="the new model")
    parser.add_argument("--drop-missing", action="store_true",
                        help="drop templates whose picture is missing")  # fmt: skip
    device_argument(parser)
    quiet_argument(parser)


def _rebuild(place: str, **values: Any) -> Any:
    from twinlens.progress import Progress

    result = twinlens.Gallery.open(place).rebuild(**values, progress=Progress("embedding"))
    for warning in result.warnings():
        log.warning(warning)
    return result


# --- reading ------------------------------------------------------------------------------------


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("identity", metavar="IDENTITY", nargs="?", help="list its templates")
    parser.add_argument("--templates", action="store_true", help="list all templates")


def _list(place: str, *, identity: str | None, templates: bool) -> Any:
    from twinlens.gallery.results import IdentityList

    gallery = twinlens.Gallery.open(place)
    if templates or identity is not None:
        return gallery.templates(identity)
    return IdentityList(gallery.identities())


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    pass


def _info(place: str) -> Any:
    return twinlens.Gallery.open(place).info()


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="FILE.parquet", type=Path, help="file to write or replace")


def _export(place: str, path: Path) -> Any:
    from twinlens.gallery.results import ExportResult

    check_output_file(path)
    return ExportResult(twinlens.Gallery.open(place).export(path), str(path))


def add_identify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `twinlens identify`."""
    _add_place(parser)
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", help="one or more files")
    parser.add_argument("-k", type=int, default=5, help="candidates of each picture (5)")
    parser.add_argument("--far", "--fpir", dest="far", type=float, metavar="SHARE",
                        help="false positive identification rate (default: the calibration's)",
                        )  # fmt: skip
    quality_argument(parser)
    as_is_argument(parser)
    show_argument(parser, "draw the pictures beside their candidates")
    device_argument(parser)
    json_argument(parser)
    quiet_argument(parser)


def show_identifications(result: Any, args: argparse.Namespace) -> int:
    """Print the answers; returns 0 if all are identified, 1 if not, 2 for unreadable pictures."""
    print_result(result, args)
    for unread in result.unread:
        message = message_lines(f"twinlens: error: {unread.picture}: {unread.error}")
        print(message, file=sys.stderr)
    return 2 if result.unread else int(not result.all_identified)


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `twinlens search`."""
    _add_place(parser)
    parser.add_argument("picture", metavar="PICTURE", help="a file")
    parser.add_argument("-k", type=int, default=20, help="number of hits (20)")
    parser.add_argument("--where", metavar="CONDITION", help=WHERE_HELP)
    as_is_argument(parser)
    show_argument(parser, "draw the hits")
    device_argument(parser)
    json_argument(parser)


GalleryCommand = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[..., Any]]

GALLERY_COMMANDS: dict[str, GalleryCommand] = {
    "create": ("create an empty gallery for a model", _add_create, _create),
    "join": ("query the galleries inside a folder as one", _add_nothing, _join),
    "enrol": ("enrol pictures of identities", _add_enrol, _enrol),
    "erase": ("erase an identity and every byte of it", _add_erase, _erase),
    "rename": ("rename an identity", _add_rename, _rename),
    "list": ("list identities, or their templates", _add_list, _list),
    "info": ("show content, model, threshold and size", _add_nothing, _info),
    "optimize": ("compact files, and build an index if it is faster", _add_optimize, _optimize),
    "calibrate": ("set the threshold for the gallery's size", _add_calibrate, _calibrate),
    "feedback": ("correct answers, and adapt to the corrections", _add_feedback, _feedback),
    "export": ("write all templates to a file", _add_export, _export),
    "import": ("enrol the templates of a file", _add_import, _import),
    "rebuild": ("embed all pictures again with another model", _add_rebuild, _rebuild),
}
