"""Galleries: enrolled identities in one store; identify, search, erase."""
