"""Checks of answers. Imports nothing of the server or the trainer, so that both run the very same code."""
