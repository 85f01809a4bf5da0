"""The version of twinlens."""

__version__ = "0.1.0"
