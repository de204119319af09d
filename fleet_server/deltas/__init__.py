"""Patches between releases: which are made, how, and where devices find them.

Devices of the fleet decide which patches are worth making, so this domain stands above releases and
devices. A patch is a shortcut, never a promise: without one a device downloads the whole file.
"""
