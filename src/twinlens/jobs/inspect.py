"""`twinlens inspect`: look at a data set before training on it."""

from __future__ import annotations
