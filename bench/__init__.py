"""Side-by-side benchmarks that print a table. Run as `python -m bench.NAME`."""
