"""A loaded model: embeddings and verification."""
