"""Hot swaps under load, beside a server that says 503 meanwhile and one that pauses."""
