"""How many examples a property is tried on: few on every run, many with `--hypothesis-profile=thorough`.

No example has a deadline of its own (machines differ), and none is kept on disk: this tier leaves nothing behind.
"""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "quick", max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=2000)
settings.load_profile("quick")
