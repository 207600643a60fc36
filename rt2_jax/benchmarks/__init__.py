"""Measurements of this machine: speed and memory of the package's parts."""
