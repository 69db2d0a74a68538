"""Locust smoke test: 20 s of every operation with one to six users, to see that the service handles any load at all.

.venv-load/bin/locust -f loadtests/smoke.py --headless --only-summary --host http://127.0.0.1:8000
"""

from __future__ import annotations

from locust import LoadTestShape

from loadtests.locustfile import ChatOnceUser, ChatUser, CompleteUser, GenerateUser, ProbeUser

__all__ = ["ChatOnceUser", "ChatUser", "CompleteUser", "GenerateUser", "ProbeUser", "SmokeShape"]

# (until second, users). Six is the sum of the weights, so with six users every class has one.
STAGES = ((3, 1), (6, 3), (20, 6))


class SmokeShape(LoadTestShape):
    """Ramps up in three steps, then stops and lets the last answers finish."""

    def tick(self) -> tuple[int, float] | None:
        """Return the number of users now and how many to start per second; None ends the run."""
        now = self.get_run_time()
        return next(((users, users) for until, users in STAGES if now < until), None)
