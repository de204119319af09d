"""The model card: what a stranger should know of a release.

:mod:`content` says what a card holds, :mod:`gather` fills it at sealing, :mod:`charts` and
:mod:`plots` draw, :mod:`markdown` writes, :mod:`bundle` is the form in which all of it is stored.
"""
