"""`twinlens doctor`: facts about machine and installation, and the speed of training steps."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinlens.config import ModelSettings, PictureSettings
from twinlens.data.download import cache_folder
from twinlens.machine import installed_extras, machine, versions
from twinlens.progress import Progress, console_log

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


def doctor(*, quiet: bool = False) -> dict[str, Any]:
    """Versions, extras, machine, free disk space, and training speed in each number format.

    Args:
        quiet: whether to show no progress of the timing, which takes up to a minute.
    Returns:
        Plain data; see docs/json.md. `training` is None without the extra `train`.

    Example:
        >>> twinlens.doctor()["machine"]["cores"]  # doctest: +SKIP
        2
    """
    cache, extras, here = cache_folder(), installed_extras(), machine()
    names = versions()
    missing = {name: f"pip install 'twinlens[{name}]'" for name, is_there in extras.items()
               if not is_there}  # fmt: skip
    # Both packages write into one folder, and the one that pip wrote last is used.
    if here["gpus"] and "CUDAExecutionProvider" not in here["providers"]:
        missing["cuda"] = (
            "pip install --force-reinstall --no-deps onnxruntime-gpu"
            if "onnxruntime-gpu" in names
            else "pip install 'twinlens[cuda]', then the second command in docs/install.md"
        )
    return {
        "versions": names,
        "extras": extras,
        "missing": missing,
        "machine": here,
        "cache": str(cache),
        "disk_free_gb": {
            "here": _free_gb(Path.cwd()),
            "cache": _free_gb(cache),
        },
        "training": _training(quiet) if extras["train"] else None,
    }


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts of `doctor` as lines of text."""
    here, training = facts["machine"], facts["training"]
    lines = ["versions    " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items())]
    lines.append(f"installed   answers{' and trains' if training else ', and cannot train'}")
    lines += [f"  without {name:11} {line}" for name, line in facts["missing"].items()]
    lines.append(
        f"processor   {here['processor']}, {_count(here['cores'], 'core')}, "
        f"{_count(here['threads'], 'thread')}"
    )
    memory = "unknown" if here["memory_gb"] is None else f"{here['memory_gb']} GB"
    lines.append(f"            {here['instructions'] or 'instructions unknown'}, "
                 f"AMX {'yes' if here['amx'] else 'no'}; memory {memory}")  # fmt: skip
    lines.append(f"gpus        {', '.join(here['gpus']) or 'none of NVIDIA'}")
    lines.append(f"answers on  {', '.join(here['providers'])}")
    for place, free in facts["disk_free_gb"].items():
        lines.append(
            f"disk        {free} GB free ({facts['cache'] if place == 'cache' else place})"
        )
    return "\n".join([*lines, *(_training_lines(training) if training else [])])


def _training_lines(training: Mapping[str, Any]) -> list[str]:
    paying = [name for name, pays in training["bfloat16_pays"].items() if pays]
    lines = [f"weights     {training['weights']}"]
    lines += [
        f"  {start['name']:42} {start['licence']:15} {start['place'] or 'not at hand'}"
        for start in training["starts"]
    ]
    if not training["bfloat16"]:
        lines.append("bfloat16    no gain: the device has no bfloat16 instructions")
    else:
        lines.append(f"bfloat16    faster for: {', '.join(paying) or 'neither network'}")
    threads = _count(training["threads"], "thread")
    lines.append(f"training speed on {training['device']} with {threads}, pictures per second:")
    for name, formats in training["formats"].items():
        for row in formats:
            lines.append(f"  {name:18} {row['format']:34} {row['pictures_per_second']:>9,.0f}")
    return lines


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _training(quiet: bool) -> dict[str, Any]:
    """Device and threads of torch, the folder of pretrained weights, and timed training steps."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from twinlens.model.device import has_bfloat16, keep_freed_memory, pick_device
    from twinlens.model.pretrained import place_of, ranked_starts

    keep_freed_memory()  # As training does.
    device = pick_device("auto")
    with console_log(quiet):
        formats = {
            name: _time(device, *trial, Progress(f"timing {name}", "training steps"))
            for name, trial in TRIALS.items()
        }
    return {
        "device": torch.cuda.get_device_name(device) if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "weights": HF_HUB_CACHE,
        "starts": [
            {"name": start.name, "licence": start.licence, "place": place_of(start.name)}
            for start in ranked_starts(device)
        ],
        "bfloat16": has_bfloat16(device),
        "formats": formats,
        "bfloat16_pays": {name: _bfloat16_pays(rows) for name, rows in formats.items()},
    }


def _time(
    device: str, model: ModelSettings, picture: PictureSettings, batch: int, progress: Progress
) -> list[dict[str, Any]]:
    from twinlens.model.compute import Compute, time_formats
    from twinlens.model.device import has_bfloat16
    from twinlens.model.encoder import Encoder

    precisions = [False, True] if has_bfloat16(device) else [False]
    options = [Compute(device, half, last) for half in precisions for last in (False, True)]
    seconds = time_formats(Encoder(model, picture), options, batch, progress=progress)
    return [
        {"format": str(option), "pictures_per_second": round(batch / duration, 1)}
        for option, duration in zip(options, seconds, strict=True)
    ]


def _bfloat16_pays(formats: list[dict[str, Any]]) -> bool:
    """Whether the best bfloat16 format is faster than the best float32 format by `GAIN`."""
    best = {False: 0.0, True: 0.0}
    for row in formats:
        half = "bfloat16" in row["format"]
        best[half] = max(best[half], row["pictures_per_second"])
    return bool(best[True] > GAIN * best[False])


def _free_gb(path: Path) -> float:
    """Free space at a folder that may not exist yet."""
    while not path.exists():
        path = path.parent
    return round(shutil.disk_usage(path).free / 1e9, 1)
