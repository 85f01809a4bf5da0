"""Batches of pictures -> embeddings -> distances."""
