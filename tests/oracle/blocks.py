"""KV block pools: a count, and vLLM V1's block pool with its prefix cache and, on top, pinned contexts.

Both keep who holds what and answer the same questions. Rules of the prefix cache: shared/research/vllm_scheduler.md,
sections 2 and 3 (vLLM 0.33.0: kv_cache_manager.py, block_pool.py), confirmed by the recordings. Of contexts and pins:
docs/semantics.md, section 9.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from tests.oracle.data import Request, Token


def ceil_div(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)


@dataclass(eq=False)
class Block:
    """One block of the caching pool; `hash` is None unless the block can be found by content."""

    index: int
    ref: int = 0
    hash: int | None = None


@dataclass
class Hit:
    """What a lookup found: cached blocks from the request's start on, and how many of them are in the free queue."""

    tokens: int = 0
    blocks: list[Block] = field(default_factory=list)
    num_evictable: int = 0
    num_copying: int = 0  # how many more nobody holds but a copy under way (memory tiers)


@dataclass
class Probe:
    """A prompt that has not arrived at any instance."""

    content: list[Token]
    block_hashes: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.content)


@dataclass
class Context:
    """The blocks that a paused program left behind, as far as they are still there and nobody holds them."""

    next_turn: int  # row
    program: int  # row of its first turn; in a graph, of its chain's
    deadline_us: float | None  # end of its time to live, infinity = until the return, None = none
    final_tokens: int  # of the next turn (for bounds)
    returns_us: int = 0  # when the next turn will arrive (for bounds)
    blocks: list[Block] = field(default_factory=list)  # from the beginning on
    prefix: tuple[int, ...] = ()  # hashes of the blocks of the group's prefix below it
    is_pinned: bool = False
    waits: bool = False  # its next turn waits here


class CountPool:
    """Blocks without identity: how many are free and how many each request holds."""

    def __init__(self, usable_blocks: int, block_size: int):
        self.usable, self.block_size = usable_blocks, block_size
        self.free = usable_blocks
        self._held: dict[Request, int] = {}
        self.contexts: list[Context] = []  # none without a cache
        self.noted: Counter[str] = Counter()
        self.loading: dict[int, int] = {}
        self.by_return = False
        self.next_copy_us, self.num_leaving = None, 0

    def lookup(self, request: Request) -> Hit:
        return Hit()

    def findable(self) -> frozenset[int]:
        return frozenset()

    def leading(self, probe: Probe, findable: frozenset[int]) -> int:
        return 0

    def held(self, request: Request) -> int:
        return self._held.get(request, 0)

    def needed(self, request: Request, tokens: int) -> int:
        """Further blocks for the request's first `tokens` tokens."""
        return max(0, ceil_div(tokens, self.block_size) - self.held(request))

    def admit(self, request: Request, hit: Hit, tokens: int) -> None:
        assert request not in self._held
        self.grow(request, tokens)

    def grow(self, request: Request, tokens: int) -> None:
        extra = self.needed(request, tokens)
        assert extra <= self.free
        self.free -= extra
        self._held[request] = self.held(request) + extra

    def register(self, request: Request, tokens: int) -> None:
        """Make the full blocks of the first `tokens` tokens findable (nothing to do without a cache)."""

    def release(self, request: Request, context: Context | None = None, copying_until: int | None = None) -> None:
        self.free += self._held.pop(request, 0)

    def end_copies(self, now_us: float) -> int:
        return -1

    def refresh_pins(self, now_us: int, waiting: list[Request]) -> None:
        """Nothing is pinned without a cache."""

    def pinned_turns(self) -> list[int]:
        return []

    def pinned_besides(self, hit: Hit) -> int:
        return 0

    def shrink(self, request: Request, tokens: int) -> None:
        """Only so many tokens are left of the request's KV."""
        freed = self._held[request] - ceil_div(tokens, self.block_size)
        assert freed >= 0
        self.free, self._held[request] = self.free + freed, self._held[request] - freed

    def check(self, running: list[Request]) -> None:
        """Conservation: only running requests hold blocks; free and held blocks make up the pool."""
        assert set(self._held) <= set(running)
        assert self.free >= 0 and self.free + sum(self._held.values()) == self.usable


class CachingPool:
    """Blocks with identity, found by the chained hash of all tokens up to the block's end."""

    def __init__(self, usable_blocks: int, block_size: int):
        self.usable, self.block_size = usable_blocks, block_size
        self._blocks = [Block(i) for i in range(usable_blocks)]
        # Front = next to be allocated.
        self._free_queue: OrderedDict[int, Block] = OrderedDict((b.index, b) for b in self._blocks)
        self._tables: dict[Request, list[Block]] = {}
        self._num_registered: dict[Request, int] = {}
        self._copies: dict[int, dict[int, Block]] = {}  # hash -> block index -> block, oldest first
        self._hash_of: dict[tuple, int] = {}  # (hash of the block before, tokens) -> hash
        self.contexts: list[Context] = []  # in order of release
        self.noted: Counter[str] = Counter()
        self.by_return = False  # contexts are evicted in the order of their programs' returns, last first
        #: Idle blocks of group prefixes that are pinned with a context (by index), and the last such context to go.
        self._kept: dict[int, Context] = {}
        #: Blocks that a copy under way needs, and until when: they have their place in the queue but are not free.
        self._copying: dict[int, int] = {}
        self.loading: dict[int, int] = {}  # turns whose context is on its way into HBM -> when it will be there

    @property
    def free(self) -> int:
        return len(self._free_queue) - len(self._copying)

    def lookup(self, request: Request) -> Hit:
        """The longest cached run of blocks, never all tokens: the last one is always recomputed."""
        hit = Hit()
        for i in range((request.num_tokens - 1) // self.block_size):
            copies = self._copies.get(self._block_hash(request, i))
            if not copies:
                break
            oldest = next(iter(copies.values()))
            hit.blocks.append(oldest)
            hit.tokens += self.block_size
            is_copying = oldest.index in self._copying
            hit.num_evictable += oldest.ref == 0 and not is_copying
            hit.num_copying += is_copying
        return hit

    def findable(self) -> frozenset[int]:
        """Hashes of the blocks that a lookup would find, for routers."""
        return frozenset(key for key, copies in self._copies.items() if copies)

    def leading(self, probe: Probe, findable: frozenset[int]) -> int:
        """Leading blocks of a prompt, never all of it, that are among those."""
        most = (probe.num_tokens - 1) // self.block_size
        return next((i for i in range(most) if self._block_hash(probe, i) not in findable), most)

    def held(self, request: Request) -> int:
        return len(self._tables.get(request, ()))

    def needed(self, request: Request, tokens: int) -> int:
        return max(0, ceil_div(tokens, self.block_size) - self.held(request))

    def admit(self, request: Request, hit: Hit, tokens: int) -> None:
        assert request not in self._tables
        for block in hit.blocks:
            if block.ref == 0:
                del self._free_queue[block.index]
                self._copying.pop(block.index, None)
                self._leave_context(block)
                self._kept.pop(block.index, None)
            block.ref += 1
        self.contexts = [c for c in self.contexts if c.program != request.owner]  # the program has gone on
        self._tables[request] = list(hit.blocks)
        self._num_registered[request] = len(hit.blocks)
        self.grow(request, tokens)

    def grow(self, request: Request, tokens: int) -> None:
        for _ in range(self.needed(request, tokens)):
            block = self._take()
            block.ref = 1
            self._tables[request].append(block)

    def _take(self) -> Block:
        """The next free block, without its content."""
        block = self._next_to_take()
        del self._free_queue[block.index]
        if block.hash is not None:  # eviction
            self._leave_context(block)
            self._kept.pop(block.index, None)
            del self._copies[block.hash][block.index]
            block.hash = None
        return block

    def register(self, request: Request, tokens: int) -> None:
        num_full = tokens // self.block_size
        for i in range(self._num_registered[request], num_full):
            block = self._tables[request][i]
            block.hash = self._block_hash(request, i)
            self._copies.setdefault(block.hash, {})[block.index] = block  # no deduplication
        self._num_registered[request] = max(self._num_registered[request], num_full)

    def num_registered(self, request: Request) -> int:
        return self._num_registered.get(request, 0)

    def release(self, request: Request, context: Context | None = None, copying_until: int | None = None) -> None:
        """Last block first: blocks without a hash go to the front of the free queue, the others to its end.

        Of the latter, those that are the program's own are its `context`, if one is given; a copy of them may be
        under way until then.
        """
        self._num_registered.pop(request, None)
        if copying_until is not None:
            for block in self._tables.get(request, [])[request.shared_blocks :]:
                if block.ref == 1 and block.hash is not None:
                    self._copying[block.index] = copying_until
        if context is not None:
            own = self._tables.get(request, [])[request.shared_blocks :]
            context.blocks = [b for b in own if b.ref == 1 and b.hash is not None]
            context.prefix = self._prefix(request)
            self.contexts += [context] if context.blocks else []
        freed = []
        for block in reversed(self._tables.pop(request, [])):
            block.ref -= 1
            if block.ref == 0:
                freed.append(block)
        for block in reversed([b for b in freed if b.hash is None]):
            self._free_queue[block.index] = block
            self._free_queue.move_to_end(block.index, last=False)
        for block in freed:
            if block.hash is not None:
                self._free_queue[block.index] = block

    def end_copies(self, now_us: float) -> int:
        """Copies that have ended by now let go of their blocks. Returns the end of the last one under way before."""
        last_us = max(self._copying.values(), default=-1)
        self._copying = {index: end_us for index, end_us in self._copying.items() if end_us > now_us}
        self.loading = {row: end_us for row, end_us in self.loading.items() if end_us > now_us}
        return last_us

    @property
    def next_copy_us(self) -> int | None:
        return min(self._copying.values(), default=None)

    @property
    def num_leaving(self) -> int:
        """Blocks that will be free when copies have ended, other than those of contexts that come in."""
        coming = {b.index for c in self.contexts if c.next_turn in self.loading for b in c.blocks}
        return len(self._copying.keys() - coming)

    def begin_load(self, request: Request, hit: Hit, num_blocks: int, end_us: int, *, pinned: bool = True) -> None:
        """So many blocks more come into HBM behind a hit, which stays until then; the whole is a context."""
        own = hit.blocks[request.shared_blocks :]
        own_end_us = max([self._copying.get(block.index, end_us) for block in own] + [end_us])
        for block in hit.blocks:
            if block.ref == 0:
                self._copying[block.index] = max(self._copying.get(block.index, end_us), end_us)
        for i in range(len(hit.blocks), len(hit.blocks) + num_blocks):
            block = self._take()
            block.hash = self._block_hash(request, i)
            self._copies.setdefault(block.hash, {})[block.index] = block
            own.append(block)
        for block in reversed(own):
            self._copying[block.index] = own_end_us
            self._free_queue[block.index] = block
            self._free_queue.move_to_end(block.index)
            self._leave_context(block)
        self.loading[request.row] = own_end_us
        self.contexts = [c for c in self.contexts if c.program != request.owner]
        context = Context(request.row, request.owner, None, request.final_tokens, 0, own, is_pinned=pinned)
        context.prefix = self._prefix(request)
        self.contexts.append(context)

    def _prefix(self, request: Request) -> tuple[int, ...]:
        return tuple(self._block_hash(request, i) for i in range(request.shared_blocks))

    def refresh_pins(self, now_us: int, waiting: list[Request]) -> None:
        """At the start of a schedule() call."""
        rows = {request.row for request in waiting}
        for context in self.contexts:
            in_time = context.deadline_us is not None and now_us <= context.deadline_us
            context.waits = context.next_turn in rows
            context.is_pinned = in_time or (context.is_pinned and context.next_turn in rows)
        self._kept = {}
        for context in sorted((c for c in self.contexts if c.is_pinned), key=self._goes_when):
            for key in context.prefix:
                idle = [b.index for b in self._copies.get(key, {}).values() if b.ref == 0]
                self._kept.update(dict.fromkeys(idle[:1], context))  # the copy that would be hit

    def _goes_when(self, context: Context) -> tuple:
        """Contexts in the order in which they are evicted."""
        if self.by_return:
            return context.is_pinned, context.waits, 0 if context.waits else -context.returns_us
        return (-context.program,)

    def pinned_turns(self) -> list[int]:
        """Rows of the turns whose context is pinned."""
        return [context.next_turn for context in self.contexts if context.is_pinned]

    def pinned_besides(self, hit: Hit) -> int:
        """Pinned blocks other than those of a hit."""
        pinned = [b for c in self.contexts if c.is_pinned for b in c.blocks] + [self._blocks[i] for i in self._kept]
        return sum(b not in hit.blocks and b.index not in self._copying for b in pinned)

    def _next_to_take(self) -> Block:
        """Unpinned free blocks in the queue's order; then pinned ones, from the end of the latest program's.

        `by_return`: those of contexts after all others, the one whose program returns last first. What is pinned of a
        group's prefix goes behind the last of the contexts that it is pinned for, in the queue's order.
        """
        last = [c for c in self.contexts if c.is_pinned or self.by_return]
        kept = {block.index for c in last for block in c.blocks} | self._kept.keys()
        for index, block in self._free_queue.items():
            if index not in kept and index not in self._copying:
                return block
        taken = [
            (*self._goes_when(c), 0, c.blocks[-1]) for c in last if not any(b.index in self._copying for b in c.blocks)
        ]
        prefixes = {id(keeper): keeper for keeper in self._kept.values()}
        for keeper in prefixes.values():
            shared = [i for i in self._free_queue if self._kept.get(i) is keeper and i not in self._copying]
            taken += [(*self._goes_when(keeper), 1, self._blocks[shared[0]])] if shared else []
        *key, block = min(taken, key=lambda entry: entry[:-1])
        self.noted["context_block_taken"] += self.by_return
        self.noted["pinned_block_taken"] += all(c.is_pinned for c in last)
        self.noted["pinned_prefix_taken"] += key[-1]
        return block

    def _leave_context(self, block: Block) -> None:
        for context in self.contexts:
            if block in context.blocks:
                context.blocks.remove(block)
        self.contexts = [c for c in self.contexts if c.blocks]

    def check(self, running: list[Request]) -> None:
        """Conservation: a block is free or in the tables of as many running requests as it has references."""
        assert set(self._tables) <= set(running)
        refs = Counter(block.index for table in self._tables.values() for block in table)
        assert all(self._blocks[i].ref == num for i, num in refs.items())
        assert self.free + len(self._copying) + len(refs) == self.usable and self._free_queue.keys().isdisjoint(refs)
        assert self._free_queue.keys() >= self._copying.keys()
        in_contexts = [block.index for context in self.contexts for block in context.blocks]
        assert len(set(in_contexts)) == len(in_contexts) and self._free_queue.keys() >= set(in_contexts)

    def _block_hash(self, request: Request | Probe, i: int) -> int:
        hashes = request.block_hashes
        while len(hashes) <= i:
            start = len(hashes) * self.block_size
            tokens = request.content[start : start + self.block_size]
            assert len(tokens) == self.block_size
            key = (hashes[-1] if hashes else -1, tuple(tokens))
            hashes.append(self._hash_of.setdefault(key, len(self._hash_of)))
        return hashes[i]


def make_pool(usable_blocks: int, block_size: int, prefix_caching: bool) -> CountPool | CachingPool:
    return (CachingPool if prefix_caching else CountPool)(usable_blocks, block_size)
