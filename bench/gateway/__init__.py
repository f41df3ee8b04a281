"""Measures what a request costs in a gateway, Mulligan's and its peers', in one run. `--help` teaches."""
