"""`twinlens push`: publish a model at the Hugging Face Hub, with a model card."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twinlens.data.datasets import NAMED_SETS
from twinlens.errors import ModelError, first_line, naming_extras
from twinlens.exports.formats import add_calibration, check_export, write_model
from twinlens.exports.model_card import CardFacts, model_card
from twinlens.files import write_text
from twinlens.match.matcher import Matcher, Model
from twinlens.model.hub_models import parse_hub_address
from twinlens.model.training_record import find_record
from twinlens.parsing import read_json
from twinlens.progress import console_log
from twinlens.report.formatting import dig

__all__ = ["card_facts", "push_to_hub"]

log = logging.getLogger("twinlens")


def push_to_hub(
    model: Model,
    repo: str,
    *,
    token: str | None = None,
    private: bool = False,
    quiet: bool = False,
) -> str:
    """Publish a model at the Hugging Face Hub: graphs, weights, description and a model card.

    The card is written from the run: data, error rates with intervals, threshold, limits, licence.
    Pictures, names and the record of the training stay here.

    Args:
        model: folder of a model or of a run, or a loaded model.
        repo: "name/model"; the repository is made if missing, else its files are replaced.
        token: access token; by default HF_TOKEN or that of `hf auth login`.
        private: whether a new repository is private.
        quiet: log warnings only.
    Returns:
        The address of this state, "hf://name/model@commit", for `twinlens.load`.
    Raises:
        ModelError: no model, an export without weights, or an upload that failed.
        MissingExtraError: huggingface_hub or onnx is missing.

    Example:
        >>> twinlens.push_to_hub("runs/photos", "anna/photos")  # doctest: +SKIP
        'hf://anna/photos@3f1c...'
    """
    repo = parse_hub_address(repo).repo
    with console_log(quiet), naming_extras("push"):
        from huggingface_hub import HfApi, constants

        matcher = Matcher.of(model, "cpu")
        check_export(matcher.stored, "hub", "outside")
        with tempfile.TemporaryDirectory() as top:
            folder = Path(top)
            made = write_model(matcher.stored, folder, "hub", "outside", None)
            made = add_calibration(made, matcher.calibration)
            write_text(
                folder / "README.md", model_card(made.description, card_facts(matcher, repo))
            )
            hub = HfApi(token=token)
            try:
                hub.create_repo(repo, private=private, exist_ok=True)
                message = f"Model {made.description.fingerprint} of twinlens"
                commit = hub.upload_folder(repo_id=repo, folder_path=top, commit_message=message)
            except Exception as error:  # The client raises many kinds.
                raise ModelError(
                    f"cannot publish {repo} at {constants.ENDPOINT}: {first_line(error)}. Log in "
                    "with `hf auth login`, or set HF_TOKEN to a token that may write"
                ) from error
        address = f"hf://{repo}@{commit.oid}"
        log.info("published: %s/%s", constants.ENDPOINT, repo)
    return address


def card_facts(matcher: Matcher, address: str | None = None) -> CardFacts:
    """The facts of a model's card that lie beside it, in the folder of its run.

    Args:
        matcher: the model.
        address: "name/model" at the hub.
    """
    origin, learned = matcher.origin, None
    record = find_record(matcher.path, origin)
    if origin is not None and record is not None:
        rows = record.split <= int(origin.refitted)  # Training, or validation too.
        learned = int(rows.sum()), len(np.unique(record.identity[rows], axis=0))
    is_named = origin is not None and origin.source in NAMED_SETS
    source = origin.source if origin is not None and is_named else None
    return CardFacts(address, source, learned, _results(matcher))


def _results(matcher: Matcher) -> Mapping[str, Any] | None:
    """The run's error rates; those at a threshold only if it is still that of the model."""
    try:
        results = read_json(matcher.path.parent / "results.json")
    except (OSError, ValueError):
        return None
    verification = dig(results, "verification")
    if verification is None:
        return None
    threshold = dig(verification, "calibrated", "threshold", "value")
    now = None if matcher.calibration is None else matcher.calibration.threshold
    if threshold != now:
        verification = {key: v for key, v in verification.items() if key != "calibrated"}
    return {**results, "verification": verification}
