"""The gates that a release passes before it is sealed: figures go in, verdicts come out.

Pure: nothing here runs a model, reads a file or a clock. :mod:`given` says what gates are given,
:mod:`table` which there are and in which order; each has a file of its own. Who measures is
:mod:`fleet_server.releases.measuring`.
"""
