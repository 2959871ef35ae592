"""Due dates in ticks of 1,024 us, and the work that is left (docs/semantics.md, section 14)."""

from __future__ import annotations

import math

from tests.oracle.data import EngineConfig, Request

NO_LIMIT = 2**31 - 1
MOST_PROMPT, MOST_OUTPUT = 2**17, 2**15


def _limits(config: EngineConfig, request: Request) -> tuple[int, int, int]:
    none = (NO_LIMIT, NO_LIMIT, NO_LIMIT)
    return config.limits_us[request.klass] if request.klass < len(config.limits_us) else none


def first_token(config: EngineConfig, request: Request) -> int:
    """Latest tick of the first token that meets the limit."""
    return request.arrival_us // 1024 + _limits(config, request)[0] // 1024


def finish(config: EngineConfig, request: Request) -> int:
    """Latest tick of a finish that meets all limits."""
    ttft, tpot, e2e = _limits(config, request)
    outputs = min(tpot * (request.predicted_tokens - 1), NO_LIMIT)
    return request.arrival_us // 1024 + min(e2e // 1024, ttft // 1024 + outputs // 1024, NO_LIMIT // 1024)


def _prefill_us(config: EngineConfig, request: Request) -> int:
    return min(request.num_tokens - request.computed, MOST_PROMPT) * config.prompt_us


def work(config: EngineConfig, request: Request) -> int:
    """Predicted ticks until its last token if it ran alone from now on."""
    left = min(max(request.predicted_tokens - request.gen, 1), MOST_OUTPUT)
    return (_prefill_us(config, request) + left * config.output_us) // 1024


def too_late(config: EngineConfig, request: Request, now_us: int) -> bool:
    """It has not begun, and would miss a limit even alone."""
    if not config.rejects_late or request.record.preemptions > 0:
        return False
    now = now_us // 1024
    return now + _prefill_us(config, request) // 1024 > first_token(config, request) or (
        now + work(config, request) > finish(config, request)
    )


def tardiness_cost(config: EngineConfig, request: Request, waiting: list[Request], now_us: int) -> float:
    """Minus the logarithm of the ATC index."""
    mean = sum(max(work(config, r), 1) for r in waiting) / len(waiting)
    slack = max(finish(config, request) - work(config, request) - now_us // 1024, 0)
    return math.log(max(work(config, request), 1)) + slack / (config.lookahead_tenths * 0.1 * max(mean, 1))


KEYS = {
    "edd": lambda config, request, now_us: finish(config, request),
    "slack": lambda config, request, now_us: finish(config, request) - work(config, request),
    "mdd": lambda config, request, now_us: max(finish(config, request), now_us // 1024 + work(config, request)),
}
