"""Doing: torch layers, tensor store, lanes, run, probes."""
