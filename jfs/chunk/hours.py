"""`--upload-hours`: the hours of the day in which staged blocks are uploaded.  Pure but for the time zone."""

import time

import msgspec

from jfs.errors import UserError

HOUR_S = 3600


class Hours(msgspec.Struct, frozen=True):
    """From the hour `start` up to the hour `end`, local time; past midnight if `end` is the smaller one."""

    start: int
    end: int

    def wait(self, now: float) -> float:
        """Seconds from `now` (unix) until uploads may begin; 0 within the hours."""
        local = time.localtime(now)
        if (local.tm_hour - self.start) % 24 < (self.end - self.start) % 24:
            return 0.0
        into_the_hour = local.tm_min * 60 + local.tm_sec
        return float((self.start - local.tm_hour) % 24 * HOUR_S - into_the_hour)


def parse_hours(text: str) -> Hours | None:
    """`a,b` or `a-b`, two different hours from 0 to 23 (24 is midnight too); "" is any time.  Raises UserError."""
    if not text:
        return None
    parts = text.replace("-", ",").split(",")
    if len(parts) == 2 and all(part.strip().isdecimal() and int(part) <= 24 for part in parts):
        start, end = (int(part) % 24 for part in parts)
        if start != end:
            return Hours(start, end)
    raise UserError(
        f'Invalid value "{text}" for "upload-hours": two different hours from 0 to 23 are wanted, such as 23,5; '
        "leave the option out to upload at any time"
    )
