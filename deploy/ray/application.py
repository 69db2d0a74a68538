"""The Ray Serve application: ``serve run deploy.ray.application:build replicas=2``.

Two deployments. ``ingress`` is what Ray's HTTP proxy calls: it reads a request, chooses a replica, sends the request to
it, and sends it to another one if that ends before the answer has begun. ``engine`` has the replicas, each the whole
service with one engine (``deploy/ray/replica.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import grpc
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deploy.ray.arguments import ServeArguments, replica_settings
from deploy.ray.asgi import AsgiApplication, ForwardedRequest, Receive, ReplicaLost, Send, lifespan
from deploy.ray.replica import EngineReplica
from runtime.errors import ModelLoading, TooManyRequests
from runtime.settings import Settings

ROUTERS = {
    "prefix": "deploy.ray.router.PrefixRouter",
    "round_robin": "ray.serve.experimental.round_robin_router.RoundRobinRouter",
    "power_of_two": "ray.serve._private.request_router.pow_2_router:PowerOfTwoChoicesRequestRouter",
}
_FROM_PROXY = (b"x-request-id",)  # which Ray's HTTP proxy adds to each response
_HEAD_NODE = "node:__internal_head__"  # a resource that Ray gives the head node
_INGRESS_CPUS = 0  # two replicas on two cores must be possible
_INGRESS_REQUESTS = 10_000  # waiting and running in one ingress process; engines have limits of their own
_HEALTH_SECONDS = 2.0


def _asgi() -> Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]:
    """Return the ASGI application of the process, which is called before and after there is an ``Ingress``, too."""

    async def call(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            await serve.get_replica_context().servable_object.application(scope, receive, send)

    return call


@serve.ingress(_asgi)
class Ingress:
    """Routes requests to the engines' replicas.

    Args:
        engine: the handle of the engine deployment.
        settings: the replicas' settings, of which the limits of bodies are used.
        wait_seconds: how long a request waits for a replica.
    """

    def __init__(self, engine: DeploymentHandle, settings: Mapping[str, str], wait_seconds: float) -> None:
        self._engine = engine.options(stream=True, method_name="answer")
        self._wait_seconds = wait_seconds
        loaded = Settings.load(**{name.lower(): value for name, value in settings.items()})
        self.application = AsgiApplication(self._answer, loaded, drop=_FROM_PROXY)

    async def _answer(self, request: ForwardedRequest) -> AsyncGenerator[bytes, None]:
        """Send a request to a replica and yield its response: a ``Backend``."""
        response = self._engine.remote(request)
        running = True
        try:
            try:
                async with asyncio.timeout(self._wait_seconds):
                    await anext(response)  # b"": a replica has accepted it
            except TimeoutError:
                raise ModelLoading(
                    f"no replica has accepted the request within {self._wait_seconds:g} seconds", retry_after=10
                ) from None
            async for data in response:
                yield data
            running = False
        except BackPressureError:
            running = False
            raise TooManyRequests("too many requests wait for a replica", retry_after=1) from None
        except RayTaskError:
            raise  # a bug of ours
        except (RayError, DeploymentUnavailableError, grpc.RpcError) as error:
            running = False
            raise ReplicaLost(type(error).__name__) from error
        finally:
            if running:  # the client has disconnected, or no replica has accepted the request
                response.cancel()


def build(given: dict[str, Any]) -> serve.Application:
    """Build the application.

    Args:
        given: its arguments, as ``ServeArguments`` has them; the command line gives texts.

    Raises:
        pydantic.ValidationError: an argument is unknown or wrong.
        SettingsError: a setting is wrong, or has no meaning on Ray.
    """
    arguments = ServeArguments.model_validate(given)
    settings, secrets = replica_settings(arguments)
    loaded = Settings.load(**{name.lower(): value for name, value in settings.items()})
    scaling: dict[str, Any] = {"num_replicas": arguments.replicas}
    if arguments.replicas is None:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=arguments.min_replicas,
                initial_replicas=arguments.min_replicas,
                max_replicas=arguments.max_replicas,
                target_ongoing_requests=arguments.target_requests,
                upscale_delay_s=arguments.upscale_seconds,
                downscale_delay_s=arguments.downscale_seconds,
            )
        }
    kwargs = {"slack": arguments.slack} if arguments.router == "prefix" else {}
    engine = serve.deployment(EngineReplica).options(
        name="engine",
        **scaling,
        max_ongoing_requests=loaded.max_batch,
        max_queued_requests=loaded.max_queue,
        graceful_shutdown_timeout_s=loaded.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=_HEALTH_SECONDS,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTERS[arguments.router], request_router_kwargs=kwargs
        ),
    )
    placement: dict[str, Any] = {"num_cpus": _INGRESS_CPUS}
    if arguments.ingress_replicas == 1:
        placement["resources"] = {_HEAD_NODE: 0.001}
    ingress = serve.deployment(Ingress).options(
        name="ingress",
        num_replicas=arguments.ingress_replicas,
        max_ongoing_requests=_INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=loaded.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options=placement,
    )
    return ingress.bind(engine.bind(settings, secrets, arguments.context), settings, arguments.retry_seconds)
