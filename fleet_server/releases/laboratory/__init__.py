"""Where uploaded models are opened, run and quantised: child processes with limits.

The server itself never parses or runs a model. :mod:`tasks` says what can be asked,
:mod:`laboratory` asks, :mod:`forkserver` forks and limits, :mod:`work` does it.
"""
