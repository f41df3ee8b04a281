"""Measures what a verdict costs, kind by kind, and what a slow verifier does to others. `--help` teaches."""
