"""How long to wait before a request is tried again: as long as the server asks, and never without back-off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from random import Random

# OpenAI's x-ratelimit-reset-* headers write durations as 1h2m3.5s or 250ms.
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# The IETF draft's header, as the Hugging Face hub sends it: "api";r=0;t=55
_RATE_LIMIT = re.compile(r"r\s*=\s*(\d+)\s*;\s*t\s*=\s*(\d+)")


def backed_off(attempt: int, first: float, longest: float, random: Random) -> float:
    """Half to all of ``first * 2**attempt``, at most ``longest``; the jitter spreads the workers out."""
    whole = min(longest, first * 2.0 ** min(attempt, 60))
    return whole * random.uniform(0.5, 1.0)


def requested_wait(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds the server asks the client to wait, in any of the usual headers; None if it asks nothing."""
    values = {name.lower(): value.strip() for name, value in headers.items()}
    waits = [
        _retry_after(values.get("retry-after"), now or datetime.now(timezone.utc)),
        _scaled(values.get("retry-after-ms"), 0.001),
        _ietf_rate_limit(values.get("ratelimit")),
        *(_exhausted(values, unit) for unit in ("requests", "tokens")),
    ]
    asked = [wait for wait in waits if wait is not None]
    return max(asked) if asked else None


def _retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    seconds = _scaled(value, 1.0)
    if seconds is not None:
        return seconds
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - now).total_seconds())


def _scaled(value: str | None, unit: float) -> float | None:
    if value is None or not re.fullmatch(r"\d+(\.\d+)?", value):
        return None
    return float(value) * unit


def _ietf_rate_limit(value: str | None) -> float | None:
    found = _RATE_LIMIT.search(value or "")
    return float(found[2]) if found and found[1] == "0" else None


def _exhausted(values: Mapping[str, str], unit: str) -> float | None:
    if values.get(f"x-ratelimit-remaining-{unit}") != "0":
        return None
    parts = _DURATION.findall(values.get(f"x-ratelimit-reset-{unit}", ""))
    return sum(float(amount) * _SECONDS[name] for amount, name in parts) if parts else None
