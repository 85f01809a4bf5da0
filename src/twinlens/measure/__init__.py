"""Distances -> figures, thresholds, probabilities, and a report."""
