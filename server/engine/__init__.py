"""Clients of the engine that generates. Called by the loop, the hot swap and the trainer."""
