"""Measures: error rates, thresholds, probabilities and their intervals, from distances."""
