"""Patches that turn one artifact into another: docs/reference/deltas.md describes them."""
