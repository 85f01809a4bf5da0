"""Distances -> a loss -> better weights."""
