"""Attained service of calls and programs, for plas and atlas (docs/semantics.md, 10)."""

from __future__ import annotations

from dataclasses import dataclass

from tests.oracle.data import EngineConfig, Request


@dataclass
class Program:
    """What a program's finished calls add up to, in us."""

    attained: int = 0  # plas: sum of their service; atlas: the longest chain of it
    served: int = 0
    waited: int = 0


@dataclass
class Service:
    """Of one call: the program as it found it, and its own."""

    program: Program
    served: int = 0  # in admissions that have ended
    began_us: int = 0  # of the admission under way
    began_tokens: int = 0
    promoted: bool = False
    served_before: int = 0  # at the last promotion
    waited_before: int = 0


Programs = dict[int, Program]  # of a cluster, by the row of the first turn


def enter(programs: Programs, request: Request) -> None:
    """A schedule() call sees it for the first time."""
    if request.service is None:
        found = programs.setdefault(request.program, Program())
        request.service = Service(Program(found.attained, found.served, found.waited))


def stop(request: Request, now_us: int) -> None:
    """Its admission ends."""
    request.service.served += now_us - request.service.began_us


def finish(config: EngineConfig, programs: Programs, request: Request, now_us: int) -> None:
    stop(request, now_us)
    program, service = programs[request.program], request.service
    if config.order == "atlas":
        program.attained = max(program.attained, service.program.attained + service.served)
    else:
        program.attained += service.served
    program.served += service.served
    program.waited += now_us - request.arrival_us - service.served


def promote(config: EngineConfig, waiting: list[Request], now_us: int) -> int:
    """Those who starve start again from 0. Returns how many."""
    promoted = 0
    for request in waiting:
        service = request.service
        waited = now_us - request.arrival_us - service.served
        wait = service.program.waited + waited - service.waited_before
        served = service.program.served + service.served - service.served_before
        if config.starvation_ratio > 0 and wait > 0 and wait >= config.starvation_ratio * served:
            service.promoted = True
            service.served_before, service.waited_before = service.served, waited
            promoted += 1
    return promoted


def level(config: EngineConfig, request: Request, now_us: int) -> int:
    """Level of the service that counts for a call."""
    service = request.service
    own = service.served + (now_us - service.began_us if request.is_running else 0)
    attained = own - service.served_before if service.promoted else service.program.attained + own
    found = 0
    while found < config.num_levels - 1 and attained >= config.quantum_us * 2**found:
        found += 1
    return found
