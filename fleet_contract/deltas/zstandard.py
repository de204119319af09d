"""Zstandard, as the standard library has it from Python 3.14 on, and as its backport before."""

try:
    from compression import zstd  # type: ignore[import-not-found]
except ImportError:
    from backports import zstd

__all__ = ["zstd"]
