"""When to stop: calls and tokens are reserved before a call is sent, so that no budget is exceeded and then noticed."""

from __future__ import annotations

import threading

from chatloom.endpoints.requests import Reply, Request
from chatloom.errors import ChatloomError


class BudgetSpent(ChatloomError):
    """The next call might exceed the budget."""


class Budget:
    """Limits on calls and tokens (None: none), and what is spent; safe to use from several threads.

    A call reserves the most tokens it can cost; when its reply is there, what the server counted takes their place. A
    call that finds no room waits for those under way, whose replies may cost less.
    """

    def __init__(
        self, calls: int | None = None, tokens: int | None = None, *, spent_calls: int = 0, spent_tokens: int = 0
    ) -> None:
        self.calls, self.tokens = calls, tokens
        self.spent_calls, self.spent_tokens = spent_calls, spent_tokens
        self._reserved = 0
        self._hidden = 0  # tokens beyond the bound that some call was counted for: a prompt that the server adds
        self._changed = threading.Condition()

    def reserve(self, request: Request) -> int:
        """Count one call and put its tokens aside; what was put aside. Raises BudgetSpent where there is no room."""
        with self._changed:
            while True:
                if self.calls is not None and self.spent_calls + 1 > self.calls:
                    raise BudgetSpent(
                        f"endpoint.budget.calls: all {self.calls:,} calls are spent; replies so far are kept: raise it "
                        "and run the same command again to go on"
                    )
                need = request.most_tokens + self._hidden
                if self.tokens is None or self.spent_tokens + self._reserved + need <= self.tokens:
                    break
                if not self._reserved:
                    raise BudgetSpent(
                        f"endpoint.budget.tokens: {self.spent_tokens:,} of {self.tokens:,} tokens are spent, and the "
                        f"next call may cost up to {need:,}; replies so far are kept: raise it and run the same "
                        "command again to go on"
                    )
                self._changed.wait()
            self.spent_calls += 1
            self._reserved += need
            return need

    def settle(self, reserved: int, reply: Reply | None) -> None:
        """Give back what was put aside and count what the reply cost; None for a call without a reply."""
        with self._changed:
            self._reserved -= reserved
            if reply is not None:
                self.spent_tokens += reply.tokens
                self._hidden += max(0, reply.tokens - reserved)
            self._changed.notify_all()

    def check(self, reply: Reply) -> None:
        """Raise ChatloomError where tokens are limited and the server does not tell them."""
        if self.tokens is not None and (reply.prompt_tokens is None or reply.completion_tokens is None):
            raise ChatloomError(
                "endpoint.budget.tokens: the server does not tell how many tokens a reply cost (no `usage`), so this "
                "limit cannot be kept; leave it out and limit `endpoint.budget.calls`"
            )
