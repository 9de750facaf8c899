"""The one client for outside models that speak OpenAI's protocol: retries, budget, recorded replies.

    with Endpoint(settings, Recorded(folder / "replies.jsonl")) as endpoint:
        for outcome in endpoint.complete_many(requests):     # in the order of the requests
            ...                                              # Reply, or Refused for a request nobody will answer

`requests.py` says what is asked, `transport.py` sends one call, `client.py` waits and tries again, `budget.py` says
when to stop, `recorded.py` keeps every reply so that no call is made twice.
"""

from __future__ import annotations

from chatloom.endpoints.budget import Budget, BudgetSpent
from chatloom.endpoints.client import Endpoint, EndpointError
from chatloom.endpoints.recorded import Recorded
from chatloom.endpoints.requests import Refused, Reply, Request
from chatloom.endpoints.settings import BudgetSettings, EndpointSettings

__all__ = [
    "Budget",
    "BudgetSettings",
    "BudgetSpent",
    "Endpoint",
    "EndpointError",
    "EndpointSettings",
    "Recorded",
    "Refused",
    "Reply",
    "Request",
]
