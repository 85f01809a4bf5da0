"""A trained model -> answers."""
