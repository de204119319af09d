"""Bench devices: enrolled devices that time candidates for the releases that are being staged."""
