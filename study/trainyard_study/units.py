"""Figures as people read them."""

import math


def number(value: float) -> str:
    """Three significant digits at least: 0.120, 12.0, 1,234."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value < 10 else f"{value:.1f}"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds."""
    return number(seconds * 1e3)


def memory(size: int) -> str:
    """412 MiB, 4.2 GiB."""
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"


def money(amount: float) -> str:
    """Three significant digits, never in powers of ten: 0.00123, 12.3, 1,234."""
    if amount >= 100:
        return f"{amount:,.0f}"
    if amount == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(amount)))
    return f"{amount:.{digits}f}"
