"""How many requests go out at a time, when one is asked again, and when the money is used up.

The number at a time follows the service: it doubles each round trip until the service first asks for fewer, then grows by
one a round trip and is halved each time that it asks again (additive increase, multiplicative decrease: Chiu and Jain
1989, as in TCP). A pause that the service names is kept by all requests.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

_FIRST_AT_ONCE = 4

_ENOUGH = 8
"""Answers after which their mean alone says what the next costs."""

_BASE_SECONDS, _LONGEST_SECONDS = 0.5, 30.0


def back_off(attempt: int, rng: random.Random, base: float = _BASE_SECONDS) -> float:
    """Seconds before the next attempt after `attempt` (1 and up) failed: anywhere up to a bound that doubles each time.

    "Full jitter", which spreads those who failed together best: AWS Architecture Blog, Exponential Backoff And Jitter.
    """
    return rng.uniform(0, min(_LONGEST_SECONDS, base * 2 ** (attempt - 1)))


class Throttle:
    """Lets as many requests out at a time as the service stands.

    Attributes:
        limit: How many, as a fraction; its whole part counts.
        active: How many are out.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = max(1, at_once)
        self.limit = float(min(_FIRST_AT_ONCE, self.at_once))
        self.active = 0
        self._doubling = True
        self._cut_at = self._until = float("-inf")
        self._closed = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def pause(self) -> float:
        """Seconds until anything may go out; 0 where it may now."""
        return max(0.0, self._until - asyncio.get_running_loop().time())

    async def enter(self) -> bool:
        """Waits for a place; False where none will come, as after `close`. A place is given back by `leave`."""
        while not self._closed and (self.active >= int(self.limit) or self.pause > 0):
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                self._wake()
                raise
        if self._closed:
            return False
        self.active += 1
        return True

    def leave(self) -> None:
        self.active -= 1
        self._wake()

    def worked(self) -> None:
        """A request was answered."""
        if self.active + 1 >= int(self.limit):  # one that isn't used says nothing about what the service stands
            self.limit = min(self.at_once, self.limit + (1.0 if self._doubling else 1.0 / self.limit))
            self._wake()

    def slow_down(self, begun: float) -> None:
        """The service asked for fewer in answer to a request begun at that time of the loop's clock."""
        self._doubling = False
        if begun > self._cut_at:  # those that were out together are one message
            self._cut_at = asyncio.get_running_loop().time()
            self.limit = max(1.0, self.limit / 2)

    def hold(self, seconds: float) -> None:
        """Nothing goes out for so long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        if until > self._until:
            self._until = until
            loop.call_at(until + 1e-3, self._wake)

    def close(self) -> None:
        """Nothing more goes out."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        free = len(self._waiting) if self._closed else int(self.limit) - self.active
        while self._waiting and free > 0:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1


class Budget:
    """Money that must not be passed.

    Attributes:
        dollars: The most that may be spent; None for no bound.
        spent: By answers so far.
        unpriced: Answers that came without a price.
    """

    def __init__(self, dollars: float | None) -> None:
        self.dollars = dollars
        self.spent, self.answers, self.unpriced, self._largest, self._out = 0.0, 0, 0, 0.0, 0
        self._changed = asyncio.Event()
        self.used_up = False

    @property
    def mean(self) -> float | None:
        """Dollars an answer, as measured; None before the first."""
        return self.spent / self.answers if self.answers else None

    async def reserve(self, estimate: float | None) -> bool:
        """Waits until one more request surely fits; False where it does not. It is given back by `settle`.

        Args:
            estimate: What it is likely to cost; counts where it is more than what answers cost on average. Where neither
                is known, one request is out at a time.
        """
        while not self.used_up and self.dollars is not None:
            mean = max(self.mean or 0.0, (estimate or 0.0) if self.answers < _ENOUGH else 0.0)
            is_known = self.mean is not None or estimate is not None
            if mean == 0.0 and (is_known or self._out == 0):
                break
            fits = self.spent + self._out * mean + max(mean, self._largest) <= self.dollars + 1e-12
            if is_known and fits:
                break
            if self._out == 0:
                self.used_up = True
                break
            self._changed.clear()
            await self._changed.wait()
        if self.used_up:
            return False
        self._out += 1
        return True

    def settle(self, dollars: float | None, *, answered: bool) -> None:
        """A request is over; what failed counts as free."""
        self._out -= 1
        if answered and dollars is None:
            self.unpriced += 1
        elif answered and dollars is not None:
            self.answers += 1
            self.spent += dollars
            self._largest = max(self._largest, dollars)
        self._changed.set()
