"""Microbenchmarks: cases per op, peers beside drupe, limits of the machine. ``drupe bench`` is the way in."""
