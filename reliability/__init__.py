"""Experiments that try for long what the tests try briefly; each is a module: ``python -m reliability.soak --help``."""
