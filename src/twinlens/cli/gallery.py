"""The commands of galleries: `twinlens gallery ...`, `twinlens identify`, `twinlens search`.

Words to functions of `commands.gallery` and `commands.identify`, answers to text and exit codes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from twinlens.cli.arguments import (
    DATA_HELP,
    Parser,
    json_argument,
    print_found,
    quiet_argument,
)
from twinlens.errors import ConfigError, unknown_name

__all__ = [
    "GALLERY_COMMANDS",
    "add_gallery",
    "add_identify",
    "add_search",
    "check_gallery_word",
    "run_gallery",
    "run_identify",
    "run_search",
]

WHERE_HELP = "such as \"identity = 'anna'\" or \"metadata.room = 'north'\""


def add_gallery(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `twinlens gallery`."""
    commands = parser.add_subparsers(metavar="SUBCOMMAND", required=True, parser_class=Parser)
    for name, (summary, add_arguments, run) in GALLERY_COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        _gallery(command)
        add_arguments(command)
        json_argument(command)
        command.set_defaults(run_gallery=run)


def run_gallery(args: argparse.Namespace) -> int:
    """Run a subcommand; returns the exit code."""
    code: int = args.run_gallery(args)
    return code


def check_gallery_word(words: Sequence[str]) -> None:
    """Refuse an unknown subcommand, and name the near ones.

    Raises:
        ConfigError: the first word is no option and no subcommand.
    """
    if words and not words[0].startswith("-") and words[0] not in GALLERY_COMMANDS:
        raise ConfigError(unknown_name("subcommand of gallery", words[0], GALLERY_COMMANDS))


def _gallery(parser: argparse.ArgumentParser) -> None:
    # No Path, which would make `s3:/bucket` of `s3://bucket`.
    parser.add_argument("gallery", metavar="GALLERY", help="a gallery's folder, or s3://...")


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", nargs="?", help=DATA_HELP)
    parser.add_argument("--root", type=Path, help="where the copy of a named set lies")


# --- writing ------------------------------------------------------------------------------------


def _run_create(args: argparse.Namespace) -> int:
    from twinlens.commands.gallery import create

    print_found(create(args.gallery, args.model).info(), args.json)
    return 0


def _add_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, type=Path, metavar="MODEL",
        help="a run folder or its model folder; the gallery takes a copy along",
    )  # fmt: skip


def _add_enrol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", nargs="*", help=f"{DATA_HELP}; or FILES")
    parser.add_argument("--root", type=Path, help="where the copy of a named set lies")
    parser.add_argument("--identity", metavar="NAME", help="whom all of FILES show")
    parser.add_argument(
        "--metadata", action="append", default=[], metavar="KEY=VALUE",
        help="said of every picture, to be searched by; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--keep-thumbnails", action="store_true", help="store small pictures in the gallery too"
    )
    quiet_argument(parser)


def _run_enrol(args: argparse.Namespace) -> int:
    from twinlens.commands.gallery import enrol, enrol_files

    metadata = dict(_pair(text) for text in args.metadata)
    if args.identity is not None:
        if args.root is not None:
            raise ConfigError("--root belongs to DATA: leave it out beside --identity")
        if not args.data:
            raise ConfigError("--identity NAME needs the files that show it, one or more")
        found = enrol_files(
            args.gallery, args.identity, args.data, metadata=metadata,
            keep_thumbnails=args.keep_thumbnails, quiet=args.quiet,
        )  # fmt: skip
    else:
        found = enrol(
            args.gallery, _one_source(args.data), root=args.root, metadata=metadata,
            keep_thumbnails=args.keep_thumbnails, quiet=args.quiet,
        )  # fmt: skip
    print_found(found, args.json)
    return 0


def _one_source(words: Sequence[str]) -> str:
    if len(words) != 1:
        raise ConfigError(
            f"enrol needs one DATA ({DATA_HELP}), or --identity NAME and the files that show it; "
            f"found {len(words)} words after GALLERY"
        )
    return words[0]


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--metadata needs KEY=VALUE, such as room=north; found '{text}'")
    if "'" in key or '"' in key:
        raise ConfigError(f"a key of --metadata has no quotes, found {key.strip()}: leave them out")
    return key.strip(), value


def _add_erase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("identity", metavar="IDENTITY", help="a name, as `gallery list` shows it")


def _run_erase(args: argparse.Namespace) -> int:
    from twinlens.commands.gallery import erase

    print_found(erase(args.gallery, args.identity), args.json)
    return 0


def _add_rename(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", metavar="OLD", help="the name now")
    parser.add_argument("new", metavar="NEW", help="the name from now on")
    parser.add_argument("--merge", action="store_true", help="NEW may be enrolled already")


def _run_rename(args: argparse.Namespace) -> int:
    from twinlens.commands.gallery import rename

    print_found(rename(args.gallery, args.old, args.new, merge=args.merge), args.json)
    return 0


def _add_optimize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--partitions", type=int, metavar="N", help="of the index; 0 for none (default: by size)"
    )
    parser.add_argument(
        "--recall", type=float, default=0.95, metavar="SHARE",
        help="of the true nearest 10 that the index must find (0.95)",
    )  # fmt: skip
    quiet_argument(parser)


def _run_optimize(args: argparse.Namespace) -> int:
    from twinlens.commands.gallery import optimize

    found = optimize(
        args.gallery, partitions=args.partitions, target_recall=args.recall, quiet=args.quiet
    )
    print_found(found, args.json)
    return 0


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    _data(parser)
    parser.add_argument(
        "--fpir", type=float, default=0.01, metavar="SHARE",
        help="of strangers that may be taken for somebody (0.01)",
    )  # fmt: skip
    parser.add_argument(
        "--rule", default="auto", metavar="NAME",
        help="how an identity's templates are fused: nearest, mean, vote, or auto: the best",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="draws probes and replicates")
    quiet_argument(parser)


def _run_calibrate(args: argparse.Namespace) -> int:
    from twinlens.commands.gallery import calibrate

    found = calibrate(
        args.gallery, args.data, fpir=args.fpir, rule=args.rule, root=args.root, seed=args.seed,
        quiet=args.quiet,
    )  # fmt: skip
    print_found(found, args.json)
    return 0


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE.parquet", type=Path,
        help="of `twinlens gallery export`, or of `twinlens embed` with the gallery's model",
    )  # fmt: skip
    quiet_argument(parser)


def _run_import(args: argparse.Namespace) -> int:
    from twinlens.commands.gallery import import_file

    print_found(import_file(args.gallery, args.file, quiet=args.quiet), args.json)
    return 0


def _add_rebuild(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, metavar="NEW", help="the new model")
    parser.add_argument(
        "--drop-missing", action="store_true", help="leave out templates whose picture is gone"
    )
    quiet_argument(parser)


def _run_rebuild(args: argparse.Namespace) -> int:
    from twinlens.commands.gallery import rebuild

    found = rebuild(args.gallery, args.model, drop_missing=args.drop_missing, quiet=args.quiet)
    print_found(found, args.json)
    return 0


# --- reading ------------------------------------------------------------------------------------


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("identity", metavar="IDENTITY", nargs="?", help="list its templates")
    parser.add_argument("--templates", action="store_true", help="list everybody's templates")


def _run_list(args: argparse.Namespace) -> int:
    from twinlens.commands.gallery import list_identities, list_templates

    if args.templates or args.identity is not None:
        print_found(list_templates(args.gallery, args.identity), args.json)
    else:
        print_found(list_identities(args.gallery), args.json)
    return 0


def _add_info(parser: argparse.ArgumentParser) -> None:
    pass


def _run_info(args: argparse.Namespace) -> int:
    from twinlens.commands.gallery import info

    print_found(info(args.gallery), args.json)
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.parquet", type=Path, help="it is replaced")


def _run_export(args: argparse.Namespace) -> int:
    from twinlens.commands.gallery import export

    print_found(export(args.gallery, args.file), args.json)
    return 0


def add_identify(parser: argparse.ArgumentParser) -> None:
    """The arguments of `twinlens identify`."""
    _gallery(parser)
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", help="one or more files")
    parser.add_argument("-k", type=int, default=5, help="so many candidates of each (5)")
    parser.add_argument(
        "--far", "--fpir", type=float, metavar="SHARE",
        help="of strangers that may be taken for somebody (default: as calibrated)",
    )  # fmt: skip
    _show(parser)
    json_argument(parser)
    quiet_argument(parser)


def run_identify(args: argparse.Namespace) -> int:
    """0: all were identified. 1: somebody was not. 2: a picture could not be read."""
    from twinlens.commands.identify import identify

    found = identify(
        args.gallery, args.pictures, k=args.k, far=args.far, show=args.show, quiet=args.quiet
    )
    print_found(found, args.json)
    for one in found.unread:
        print(f"twinlens: error: {one.picture}: {one.error}", file=sys.stderr)
    if found.unread:
        return 2
    return 0 if found.is_everybody else 1


def add_search(parser: argparse.ArgumentParser) -> None:
    """The arguments of `twinlens search`."""
    _gallery(parser)
    parser.add_argument("picture", metavar="PICTURE", help="a file")
    parser.add_argument("-k", type=int, default=20, help="the nearest so many (20)")
    parser.add_argument("--where", metavar="CONDITION", help=WHERE_HELP)
    _show(parser)
    json_argument(parser)


def run_search(args: argparse.Namespace) -> int:
    """0, whatever was found."""
    from twinlens.commands.identify import search

    print_found(
        search(args.gallery, args.picture, k=args.k, where=args.where, show=args.show), args.json
    )
    return 0


def _show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--show", type=Path, metavar="FILE.png", help="draw what was found")


GalleryCommand = tuple[
    str,
    Callable[[argparse.ArgumentParser], None],
    Callable[[argparse.Namespace], int],
]

GALLERY_COMMANDS: dict[str, GalleryCommand] = {
    "create": ("make an empty gallery for a model", _add_create, _run_create),
    "enrol": ("add pictures of identities", _add_enrol, _run_enrol),
    "erase": ("erase an identity, for certain", _add_erase, _run_erase),
    "rename": ("give an identity another name", _add_rename, _run_rename),
    "list": ("list identities, or their templates", _add_list, _run_list),
    "info": ("what is in a gallery, and of which model", _add_info, _run_info),
    "optimize": ("clean up, and build an index if it is faster", _add_optimize, _run_optimize),
    "calibrate": ("find the threshold for a gallery of this size", _add_calibrate, _run_calibrate),
    "export": ("write all templates to a file", _add_export, _run_export),
    "import": ("add the templates of a file", _add_import, _run_import),
    "rebuild": ("embed all pictures anew with another model", _add_rebuild, _run_rebuild),
}
