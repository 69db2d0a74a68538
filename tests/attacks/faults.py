"""What a bad line to a server does: a fault each, for a proxy with connections open."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.attacks.fault_proxy import FaultProxy


def stall(proxy: FaultProxy) -> None:
    proxy.down.stall_after = 0


def silent(proxy: FaultProxy) -> None:
    proxy.up.stall_after = 0


def cut(proxy: FaultProxy) -> None:
    proxy.down.cut_after = 0


def half_close(proxy: FaultProxy) -> None:
    proxy.down.half_close_after = 0


def refuse(proxy: FaultProxy) -> None:
    proxy.refuse = True
    proxy.cut()


def garble(proxy: FaultProxy) -> None:
    chance = random.Random(3)
    proxy.down.garble = lambda piece: chance.randbytes(len(piece))


def drip(proxy: FaultProxy) -> None:
    proxy.down.piece, proxy.down.delay = 1, 0.2


def delay(proxy: FaultProxy) -> None:
    proxy.down.delay = 3


FAULTS: list[Callable[[FaultProxy], None]] = [stall, silent, cut, half_close, refuse, garble, drip, delay]
