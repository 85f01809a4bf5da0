"""Formats of `twinlens export`: models for other runtimes, each with its own threshold."""
