"""Twenty seconds of every operation, from one user to six: does the service hold under any load at all?

.venv-load/bin/locust -f loadtests/smoke.py --headless --only-summary --host http://127.0.0.1:8000
"""

from __future__ import annotations

from locust import LoadTestShape

from loadtests.locustfile import ChatOnceUser, ChatUser, CompleteUser, GenerateUser, ProbeUser

__all__ = ["ChatOnceUser", "ChatUser", "CompleteUser", "GenerateUser", "ProbeUser", "SmokeShape"]

# (until second, users). Six is the sum of the weights: with as many users every class has one.
STAGES = ((3, 1), (6, 3), (20, 6))


class SmokeShape(LoadTestShape):
    """Ramp up in three steps, then stop and let the last answers be finished."""

    def tick(self) -> tuple[int, float] | None:
        """Users wanted now and how many to start per second; None ends the run."""
        now = self.get_run_time()
        return next(((users, users) for until, users in STAGES if now < until), None)
