"""How long the state machine searches: `SHOAL_RADIX_EXAMPLES` x `SHOAL_RADIX_STEPS`, or a Hypothesis profile."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "radix-nightly",
    max_examples=2000,
    stateful_step_count=100,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
