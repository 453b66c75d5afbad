"""Whole networks, as users call them: one module for each."""
