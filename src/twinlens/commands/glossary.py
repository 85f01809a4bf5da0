"""`twinlens glossary`: the terms of the field, for the terminal and for docs/glossary.md.

Write the page anew with `python -m twinlens.commands.glossary > docs/glossary.md`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from twinlens.errors import ConfigError, unknown_name

__all__ = ["TERMS", "as_text", "glossary", "glossary_page"]

TERMS: Mapping[str, str] = {
    "ambiguous": "Verdict of `identify` if two identities are about equally close.",
    "AUC": "Area under the ROC curve: how often a genuine pair is closer than an impostor pair. "
    "Higher is better; chance is 50 %.",
    "backbone": "The network that turns a picture into features. A head turns these into the "
    "embedding.",
    "calibration": "Choice of the threshold for a target error rate, and of the probability at "
    "each distance, on pictures that the model was not trained on.",
    "calibration error": "Mean difference between the probability of an answer and the share of "
    "genuine pairs among such answers. Lower is better. Also ECE.",
    "Cllr": "Log-likelihood-ratio cost, in bits: what wrong probabilities cost. 0 is the best, 1 "
    "that of answers that say nothing. min Cllr is what stays with the best calibration.",
    "closed set": "All identities in use are known at training. See open set.",
    "confidence interval": "Range of a figure over other samples of identities, here with 95 %. "
    "Few identities give a wide one.",
    "DIR": "Detection and identification rate: share of probes of enrolled identities that get "
    "the right identity.",
    "distance": "Dissimilarity of two pictures, as a model measures it. Lower is closer, 0 is "
    "the same picture.",
    "domain": "The kind of pictures that a model was calibrated on. On others its threshold may "
    "not hold, and the answer says so.",
    "EER": "Equal error rate: error rate at the threshold where FAR and FRR are equal. Lower is "
    "better; chance is 50 %.",
    "embedding": "List of numbers that a model makes of a picture. Pictures of one identity get "
    "embeddings that are close.",
    "enrolment": "Addition of an identity's pictures to a gallery.",
    "FAR": "False accept rate: share of impostor pairs that match. Also false match rate, FMR.",
    "FPIR": "False positive identification rate: share of strangers that a gallery identifies as "
    "somebody enrolled. It grows with the gallery.",
    "FRR": "False reject rate: share of genuine pairs that do not match. Also false non-match "
    "rate, FNMR.",
    "FTA": "Failure to acquire: share of pictures that cannot be used: unreadable, without a "
    "face, or of too low a quality.",
    "gallery": "Stored templates of enrolled identities, which probes are compared with.",
    "genuine pair": "Two pictures of the same identity.",
    "identification": "Which enrolled identity does a picture show, if any? A comparison with a "
    "whole gallery.",
    "identity": "Who or what a picture shows: a person, a product, a writer, a place.",
    "impostor pair": "Two pictures of different identities, or of an identity and a forgery of it.",
    "MAP at R": "Mean average precision among as many nearest pictures as there are other "
    "pictures of the identity.",
    "model": "Network, picture settings and calibration in one folder. Embeddings of different "
    "models cannot be compared.",
    "open set": "Identities in use may be unknown, so that `nobody` is an answer.",
    "prior": "Probability of a genuine pair before the comparison. It moves the probability of "
    "an answer, and never its verdict.",
    "probability": "Share of genuine pairs among pairs at such a distance, at a stated prior.",
    "probe": "Picture that is compared with a gallery.",
    "quality": "Score of sharpness, size and contrast, between 0 and 1.",
    "recall at 1": "Share of pictures whose nearest other picture shows the same identity.",
    "split": "Division of the pictures into those to train on, to validate and calibrate on, and "
    "to test on. Identities are in one part only, unless set otherwise.",
    "stranger": "Identity that is not enrolled (non-mated).",
    "TAR": "True accept rate: share of genuine pairs that match, 1 - FRR.",
    "template": "Embedding of an enrolled picture.",
    "threshold": "Largest distance at which two pictures match. A smaller one lowers FAR and "
    "raises FRR.",
    "verification": "Do two pictures show the same identity? A comparison of one pair.",
    "whitening": "Linear map that makes the variation within identities equal in all "
    "directions. It needs labelled pictures, and no training.",
}
"""Definitions by term, in alphabetical order."""


def glossary(word: str | None = None) -> dict[str, str]:
    """Definitions by term.

    Args:
        word: a term, or a part of one or of its definition; None for all terms.
    Raises:
        ConfigError: an unknown term; the message lists similar ones.

    >>> list(glossary("eer"))
    ['EER']
    >>> list(glossary("non-match"))
    ['FRR']
    """
    if word is None:
        return dict(TERMS)
    low = word.lower()
    exact = {term: text for term, text in TERMS.items() if low == term.lower()}
    part = {term: text for term, text in TERMS.items() if low in term.lower()}
    mentioned = {term: text for term, text in TERMS.items() if low in text.lower()}
    if not (terms := exact or part or mentioned):
        raise ConfigError(unknown_name("term", word, TERMS))
    return terms


def as_text(terms: Mapping[str, str]) -> str:
    """Terms and definitions for a terminal of 80 columns."""
    width = max(map(len, terms)) + 2
    return "\n".join(
        textwrap.fill(
            text.replace("`", ""), 80, initial_indent=term.ljust(width),
            subsequent_indent=" " * width,
        )
        for term, text in terms.items()
    )  # fmt: skip


def glossary_page() -> str:
    """Markdown with all terms."""
    rows = "\n".join(f"| {term} | {text} |" for term, text in TERMS.items())
    return (
        "# Glossary\n\n"
        "<!-- Generated: python -m twinlens.commands.glossary > docs/glossary.md -->\n\n"
        "`twinlens glossary` prints these terms, `twinlens glossary EER` one of them. Those of\n"
        "biometrics follow ISO/IEC 19795-1.\n\n"
        f"| Term | Meaning |\n| --- | --- |\n{rows}\n"
    )


if __name__ == "__main__":
    print(glossary_page(), end="")
