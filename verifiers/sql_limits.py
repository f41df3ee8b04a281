"""What holds for SQL where a configuration says nothing else. Read by the kind, and in its workers."""

TIMEOUT_S = 2.0
MAX_ROWS = 1_000
TOLERANCE = 1e-9
LENIENCY = 2  # times the time limit for a reference: one that took nearly all of it must not fail at the next verdict
