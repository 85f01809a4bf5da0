"""`twinlens doctor`: facts about this machine, and the speed of its training steps."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinlens.config import ModelSettings, PictureSettings
from twinlens.data.download import cache_folder
from twinlens.model.compute import Compute, time_formats
from twinlens.model.device import (
    has_bfloat16,
    keep_freed_memory,
    machine,
    pick_device,
    versions,
)
from twinlens.model.encoder import Encoder

__all__ = ["as_text", "doctor"]

GAIN = 1.15  # that counts as clearly faster: timings are noisy

# Timed networks: the small one of `auto`, and a typical one of timm's.
TRIALS: Mapping[str, tuple[ModelSettings, PictureSettings, int]] = {
    "conv 32x32": (
        ModelSettings(backbone="conv"),
        PictureSettings(size=(32, 32), color="grey"),
        128,
    ),
    "resnet18 112x112": (
        ModelSettings(backbone="resnet18"),
        PictureSettings(size=(112, 112), color="rgb"),
        16,
    ),
}


def doctor() -> dict[str, Any]:
    """Versions, machine, free disk space, and training speed in each number format.

    Returns:
        Plain data; see docs/json.md.

    Example:
        >>> twinlens.doctor()["machine"]["cores"]  # doctest: +SKIP
        2
    """
    cache = cache_folder()
    keep_freed_memory()  # As training does.
    formats = {name: _time(*trial) for name, trial in TRIALS.items()}
    return {
        "versions": versions(),
        "machine": machine(),
        "cache": str(cache),
        "disk_free_gb": {
            "here": _free_gb(Path.cwd()),
            "cache": _free_gb(cache),
        },
        "formats": formats,
        "bfloat16_pays": {name: _bfloat16_pays(rows) for name, rows in formats.items()},
    }


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts of `doctor` as lines of text."""
    here = facts["machine"]
    lines = ["versions    " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items())]
    lines.append(
        f"processor   {here['processor']}, {here['cores']} cores, {here['threads']} threads"
    )
    lines.append(f"            {here['instructions']}, AMX {'yes' if here['amx'] else 'no'}")
    lines.append(f"devices     {', '.join(here['devices'])}")
    for place, free in facts["disk_free_gb"].items():
        lines.append(
            f"disk        {free} GB free ({facts['cache'] if place == 'cache' else place})"
        )
    paying = [name for name, pays in facts["bfloat16_pays"].items() if pays]
    if not here["bfloat16"]:
        lines.append("bfloat16    no gain: the processor has no bfloat16 instructions")
    else:
        lines.append(f"bfloat16    faster for: {', '.join(paying) or 'neither network'}")
    lines.append("training speed, pictures per second:")
    for name, formats in facts["formats"].items():
        for row in formats:
            lines.append(f"  {name:18} {row['format']:34} {row['pictures_per_second']:>9,.0f}")
    return "\n".join(lines)


def _bfloat16_pays(formats: list[dict[str, Any]]) -> bool:
    """Whether the best bfloat16 format is faster than the best float32 format by `GAIN`."""
    best = {False: 0.0, True: 0.0}
    for row in formats:
        half = "bfloat16" in row["format"]
        best[half] = max(best[half], row["pictures_per_second"])
    return bool(best[True] > GAIN * best[False])


def _time(model: ModelSettings, picture: PictureSettings, batch: int) -> list[dict[str, Any]]:
    device = pick_device("auto")
    precisions = [False, True] if has_bfloat16(device) else [False]
    options = [Compute(device, half, last) for half in precisions for last in (False, True)]
    seconds = time_formats(Encoder(model, picture), options, batch)
    return [
        {"format": str(option), "pictures_per_second": round(batch / duration, 1)}
        for option, duration in zip(options, seconds, strict=True)
    ]


def _free_gb(path: Path) -> float:
    """Free space at a folder that may not exist yet."""
    while not path.exists():
        path = path.parent
    return round(shutil.disk_usage(path).free / 1e9, 1)
