"""The one place that moves adapters in and out of engines. Called by the API, the command line and the trainer."""
