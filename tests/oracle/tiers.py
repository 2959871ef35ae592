"""Memory tiers below HBM: copies of contexts in host memory and in a remote pool (docs/semantics.md, section 10)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

#: Transfers that would end later than this from now are not made.
LONGEST_TRANSFER_US = 2**28


@dataclass(frozen=True)
class LinkConfig:
    """One direction of a link."""

    block_us: int
    block_fraction: int  # of a microsecond, 1024ths
    launch_us: int
    block_group: int

    def operations(self, blocks: int) -> int:
        return -(-blocks // self.block_group)

    def time_us(self, blocks: int) -> int:
        return self.operations(blocks) * self.launch_us + blocks * self.block_us + blocks * self.block_fraction // 1024


@dataclass(frozen=True)
class TierConfig:
    """Capacities in blocks; what is copied when."""

    host_blocks: int  # of each instance
    host_out: LinkConfig
    host_in: LinkConfig
    remote_blocks: int = 0  # of all together; 0 = none
    remote_out: LinkConfig | None = None
    remote_in: LinkConfig | None = None
    overlap: bool = True
    keep_copy: bool = True
    on_pause: bool = True
    on_preempt: bool = True
    returns_in_us: int = -1  # when programs are expected back: contexts are prefetched by then; -1 = not


@dataclass(eq=False)
class Copy:
    """The copy of blocks [low, high) of a chain; `chain` is None if nobody will read it again."""

    chain: int | None
    low: int
    high: int
    ready_us: int
    busy_us: int


@dataclass
class Store:
    """What one tier holds, used longest ago first."""

    capacity: int
    copies: list[Copy] = field(default_factory=list)

    def find(self, chain: int) -> Copy | None:
        return next((copy for copy in self.copies if copy.chain == chain), None)

    @property
    def used(self) -> int:
        return sum(copy.high - copy.low for copy in self.copies)

    def room(self, chain: int, now_us: int) -> int:
        """Blocks that could be added to the copy of a chain."""
        return max(self.capacity - self.used + sum(c.high - c.low for c in self._droppable(chain, now_us)), 0)

    def _droppable(self, chain: int, now_us: int) -> list[Copy]:
        """In the order in which they are dropped."""
        others = [c for c in self.copies if c.chain != chain and c.busy_us <= now_us]
        return [c for c in others if c.chain is None] + [c for c in others if c.chain is not None]

    def put(self, chain: int, low: int, add: int, now_us: int, end_us: int, busy_us: int | None = None) -> int:
        """Add blocks (as many as there is room for at most) to a chain's copy. Returns how many were dropped for it."""
        dropped = 0
        for copy in self._droppable(chain, now_us):
            while add > self.capacity - self.used and copy.high > copy.low:
                copy.high -= 1
                dropped += 1
        self.copies = [c for c in self.copies if c.high > c.low]
        copy = self.find(chain)
        if copy is None and add > 0:
            copy = Copy(chain, low, low, 0, 0)
        elif copy is not None:
            self.copies.remove(copy)
        if copy is not None:
            self.copies.append(copy)
            if add > 0:
                copy.high += add
                copy.ready_us = end_us
                copy.busy_us = max(copy.busy_us, end_us if busy_us is None else busy_us)
        assert self.used <= self.capacity
        return dropped

    def read(self, chain: int, until_us: int, keep: bool) -> None:
        copy = self.find(chain)
        if copy is None:
            return
        copy.busy_us = max(copy.busy_us, until_us)
        self.copies.remove(copy)
        self.copies.append(copy)
        if not keep:
            copy.chain = None


@dataclass
class Load:
    """What the tiers can add behind a hit in HBM."""

    blocks: int
    end_us: int
    remote_blocks: int = 0
    remote_end_us: int = 0


class Tiers:
    """The tiers of one instance; the remote store is shared by all."""

    def __init__(self, config: TierConfig, remote: Store | None):
        self.config, self.host, self.remote = config, Store(config.host_blocks), remote
        self.out_us = self.in_us = self.remote_out_us = self.remote_in_us = 0  # when each link is free
        self.stall_us = 0  # no step starts before
        self.noted: Counter[str] = Counter()

    def _earliest(self, now_us: int) -> int:
        return now_us if self.config.overlap else max(now_us, self.stall_us)

    def copy_out(self, chain: int, low: int, high: int, now_us: int) -> None:
        """Write what the host lacks, as far as there is room, and then the same to the remote pool."""
        config, copy = self.config, self.host.find(chain)
        have = copy.high if copy else low
        add = min(max(high - have, 0), self.host.room(chain, now_us))
        self.noted["only_part_written"] += add < high - have
        self.noted["only_increment_written"] += add > 0 and have > low
        end_us = max(self._earliest(now_us), self.out_us) + config.host_out.time_us(add)
        if add == 0 or end_us - now_us > LONGEST_TRANSFER_US:
            self.host.put(chain, low, 0, now_us, 0)
        else:
            self.noted["dropped_on_host"] += self.host.put(chain, low, add, now_us, end_us)
            self.out_us = end_us
            self.noted["host_out_blocks"] += add
            self.noted["transfers"] += config.host_out.operations(add)
            if not config.overlap:
                self.stall_us = max(self.stall_us, end_us)
        if self.remote is not None:
            self._copy_to_remote(self.remote, chain, low, now_us)

    def _copy_to_remote(self, remote: Store, chain: int, low: int, now_us: int) -> None:
        link, copy, far = self.config.remote_out, self.host.find(chain), remote.find(chain)
        assert link is not None
        have = far.high if far else low
        add = min(max((copy.high if copy else 0) - have, 0), remote.room(chain, now_us))
        if add == 0:
            remote.put(chain, low, 0, now_us, 0)
            return
        assert copy is not None
        end_us = max(now_us, copy.ready_us, self.remote_out_us) + link.time_us(add)
        if end_us - now_us > LONGEST_TRANSFER_US:
            remote.put(chain, low, 0, now_us, 0)
            return
        self.noted["dropped_in_pool"] += remote.put(chain, low, add, now_us, end_us)
        copy.busy_us = max(copy.busy_us, end_us)
        self.remote_out_us = end_us
        self.noted["remote_out_blocks"] += add
        self.noted["transfers"] += link.operations(add)

    def copying_until(self, chain: int, now_us: int) -> int | None:
        """End of the copy under way of a chain, where it overlaps with compute."""
        copy = self.host.find(chain)
        return copy.ready_us if copy and self.config.overlap and copy.ready_us > now_us else None

    def find(self, chain: int, low: int, hit: int, most: int, now_us: int) -> Load | None:
        """What can be loaded behind the first `hit` blocks, up to block `most`."""
        config, copy = self.config, self.host.find(chain)
        far = self.remote.find(chain) if self.remote is not None else None
        end = min(copy.high, most) if copy else 0
        top = max(end, min(far.high, most) if far else 0)
        if hit < low or top <= hit:
            return None
        load = Load(top - hit, 0, max(top - max(end, hit), 0), now_us)
        start_us = self._earliest(now_us)
        if load.remote_blocks > 0:
            assert far is not None and config.remote_in is not None
            load.remote_end_us = max(start_us, far.ready_us, self.remote_in_us)
            load.remote_end_us += config.remote_in.time_us(load.remote_blocks)
            start_us = max(start_us, load.remote_end_us)
        if load.blocks > load.remote_blocks:
            assert copy is not None
            start_us = max(start_us, copy.ready_us)
        load.end_us = max(start_us, self.in_us) + config.host_in.time_us(load.blocks)
        late = max(load.end_us, load.remote_end_us) - now_us > LONGEST_TRANSFER_US
        return None if late else load

    def load(self, chain: int, low: int, hit: int, load: Load, now_us: int) -> None:
        config = self.config
        self.in_us = load.end_us
        if not config.overlap:
            self.stall_us = max(self.stall_us, load.end_us)
        self.noted["host_in_blocks"] += load.blocks
        self.noted["transfers"] += config.host_in.operations(load.blocks)
        if load.remote_blocks > 0:
            assert self.remote is not None and config.remote_in is not None
            self.remote_in_us = load.remote_end_us
            self.remote.read(chain, load.remote_end_us, keep=True)
            self.noted["remote_in_blocks"] += load.remote_blocks
            self.noted["transfers"] += config.remote_in.operations(load.remote_blocks)
            copy = self.host.find(chain)
            have = copy.high if copy else low
            add = min(hit + load.blocks - have, self.host.room(chain, now_us))
            if have >= hit and add > 0:
                self.host.put(chain, low, add, now_us, load.remote_end_us, load.end_us)
        self.host.read(chain, load.end_us, config.keep_copy)
