"""The demo: two tasks with generated problems, and the tiny model that is bad at them until it learns to reflect."""
