"""Faces in photographs: detect, crop, and a page to check the crops."""
