"""The ops: one module for each."""
