"""The trainer: a Celery worker whose rounds turn logged failures into better adapters. The server never imports it."""
