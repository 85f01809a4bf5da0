"""The service: models and galleries by HTTP, and a page for people (extra `serve`)."""
