"""A log of ten thousand and one of a million episodes, asked the same questions."""
