"""What an instance event asks of the KV cache, and the answer of an engine without one.

Free blocks are of two kinds: blocks without findable content (a count, taken first) and cached blocks that nobody
holds, in order of release. Taking n blocks therefore never needs to know which: what the count does not cover is a
debt, paid by evicting the oldest cached blocks, and it may be paid any time before somebody looks at the cache
(../shared/research/prefix_cache_in_jax.md, section 1: three facts).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Hit(NamedTuple):
    """What a lookup found."""

    blocks: jax.Array  # leading blocks of the request that are cached
    idle: jax.Array  # how many of them nobody holds: they are free blocks until the request takes them
    where: Any = None  # which entries, in the representation's own terms
    pinned: jax.Array | int = 0  # blocks of `idle` that are pinned, for this very request
    copying: jax.Array | int = 0  # of the blocks found: held by nobody but a copy under way, so not free either


class Pin(NamedTuple):
    """For how long a paused program's blocks are kept from those who wait (sim/retain.py)."""

    next: jax.Array  # row of the program's next turn, -1 = it is over
    program: jax.Array  # row of its first turn; where programs are graphs, of the first turn of the chain
    due_epoch: jax.Array  # end of the time to live
    due_us: jax.Array
    since_epoch: jax.Array | int = 0  # when the pause began
    since_us: jax.Array | int = 0
    copy: jax.Array | bool = False  # whether a copy in host memory is brought up to date (sim/tiers.py)


class KvCache:
    """Scratch of one micro-step on one instance's cache: attributes are replaced, `store` writes back."""

    #: Whether a second copy of a block was met, or a run found no room, in this micro-step (chains of runs).
    copies: jax.Array | bool = False
    overflow: jax.Array | bool = False

    def register(self, running: jax.Array, order: jax.Array, tokens: jax.Array) -> None:
        """Make the full blocks of each running slot's first `tokens` tokens findable (`order`: list order)."""
        raise NotImplementedError

    def register_one(self, slot: jax.Array, active: jax.Array, tokens: jax.Array) -> None:
        """`register` for a single slot."""
        raise NotImplementedError

    def take(self, blocks: jax.Array) -> None:
        """Take free blocks that hold nothing yet."""
        raise NotImplementedError

    def take_ahead(self, blocks: jax.Array) -> None:
        """`blocks` of the next `take` of this call are taken by now (so many in all, if called again)."""
        raise NotImplementedError

    def release(self, slot: jax.Array, active: jax.Array, held: jax.Array, pin: Pin | None = None) -> jax.Array:
        """A slot's `held` blocks are let go. Returns how many became free."""
        raise NotImplementedError

    def lookup(self, row: jax.Array, known: jax.Array) -> Hit:
        """The longest cached beginning of a request with `known` tokens, never all of them."""
        raise NotImplementedError

    def admit(self, slot: jax.Array, active: jax.Array, row: jax.Array, hit: Hit, new_blocks: jax.Array) -> None:
        """The request of table row `row` takes what `lookup` found, and `new_blocks` more."""
        raise NotImplementedError

    def flush(self, active: jax.Array, usable: jax.Array) -> None:
        """Forget everything; nobody holds a block. `usable`: size of the pool."""
        raise NotImplementedError

    def store(self, kv: Any) -> Any:
        """The state with this row written back."""
        raise NotImplementedError


class NoCache(KvCache):
    """Prefix caching off: nothing is ever found."""

    def register(self, running: jax.Array, order: jax.Array, tokens: jax.Array) -> None:
        """Nothing is kept."""

    def register_one(self, slot: jax.Array, active: jax.Array, tokens: jax.Array) -> None:
        """Nothing is kept."""

    def take(self, blocks: jax.Array) -> None:
        """The instance counts its free blocks."""

    def take_ahead(self, blocks: jax.Array) -> None:
        """The instance counts its free blocks."""

    def release(self, slot: jax.Array, active: jax.Array, held: jax.Array, pin: Pin | None = None) -> jax.Array:
        """All of them."""
        return jnp.where(active, held, 0)

    def lookup(self, row: jax.Array, known: jax.Array) -> Hit:
        """Nothing."""
        return Hit(jnp.int32(0), jnp.int32(0))

    def admit(self, slot: jax.Array, active: jax.Array, row: jax.Array, hit: Hit, new_blocks: jax.Array) -> None:
        """Nothing to do."""

    def flush(self, active: jax.Array, usable: jax.Array) -> None:
        """Nothing is kept."""

    def store(self, kv: Any) -> Any:
        """As it was."""
        return kv
