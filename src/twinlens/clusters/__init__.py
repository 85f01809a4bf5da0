"""Clustering of embeddings: linkage, constraints, the folder and the page of a clustering."""
