"""Locust's user that carries out the orders of ``loadtests.load.controller``, one in each worker process."""

from __future__ import annotations

from argparse import Namespace
from queue import SimpleQueue
from typing import Any

from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from loadtests.load.arrivals import LoadStage
from loadtests.load.events_client import BridgedEvents
from loadtests.load.http_client import ConnectionPool, Target
from loadtests.load.prompts import Prompts
from loadtests.load.record import LoadRecord
from loadtests.load.scenario import Scenario
from loadtests.load.stage_worker import StageOrder, StageWorker

# Locust's messages
ORDER = "load_order"
RECORDS = "load_records"
ENDED = "load_ended"


class LoadUser(User):
    """Takes an order from the environment's queue, carries it out, and sends the records.

    The environment has ``load_orders`` and ``load_options`` (see ``prepare``).
    """

    @task
    def carry_out(self) -> None:
        """Carry out the next order."""
        environment = self.environment
        data = environment.load_orders.get()
        if data is None:
            raise StopUser
        options: Namespace = environment.load_options
        order = StageOrder(
            scenario=Scenario.model_validate(data["scenario"]),
            stage=LoadStage.model_validate(data["stage"]),
            repetition=data["repetition"],
            prompts=Prompts(*data["prompts"]),
            model=data["model"],
            worker=data["worker"],
            workers=data["workers"],
        )
        pool = ConnectionPool(Target(data["url"], options.api_key, not options.insecure))
        events = BridgedEvents(options.events_python, options.events) if options.events else None
        paths = {work.name: work.kind for work in order.scenario.work}

        def publish(records: list[LoadRecord]) -> None:
            for record in records:  # for Locust's own statistics and page
                environment.events.request.fire(
                    request_type=paths[record.work],
                    name=record.work,
                    response_time=record.e2e * 1000,
                    response_length=record.completion_tokens,
                    exception=record.outcome if record.failed else None,
                    context={},
                )
            packed = [record.packed() for record in records]
            environment.runner.send_message(RECORDS, {"number": data["number"], "records": packed})

        try:
            usage = StageWorker(order, pool, events, publish).run()
        finally:
            pool.close()
            if events:
                events.close()
        environment.runner.send_message(ENDED, {"number": data["number"], **usage.model_dump()})


def prepare(options: Namespace) -> Environment:
    """Return a Locust environment whose users carry out orders.

    Args:
        options: those of ``warmstart load``, and ``events_python``, an interpreter that has the service.
    """
    environment = Environment(user_classes=[LoadUser], host=options.host, reset_stats=False)
    environment.load_options = options
    environment.load_orders = SimpleQueue()
    return environment


def take_orders(environment: Environment) -> None:
    """Have the environment's runner put orders into the queue."""

    def on_order(environment: Environment, msg: Any, **_: Any) -> None:
        environment.load_orders.put(msg.data)

    environment.runner.register_message(ORDER, on_order)
