"""Pictures on disk -> a table -> batches of uint8 pictures."""
