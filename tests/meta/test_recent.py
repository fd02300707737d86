"""What a client remembers of its own changes."""

from jfs.meta.recent import Recent
from jfs.meta.types import TYPE_FILE, Attr

INO = 7


def of_length(length: int) -> Attr:
    return Attr(type=TYPE_FILE, mode=0o644, length=length)


def shown(recent: Recent) -> int | None:
    attr = recent.attr(INO)
    return None if attr is None else attr.length


def test_the_later_commit_is_kept_whichever_is_told_first() -> None:
    recent = Recent(60)
    began = recent.now()
    recent.wrote({INO: of_length(2)}, 20, began)
    recent.wrote({INO: of_length(1)}, 10, began)
    assert shown(recent) == 2


def test_what_the_database_said_is_not_replaced_by_a_commit_from_before() -> None:
    """Another client's change came after the commit, and was seen before the commit's answer was there."""
    recent = Recent(60)
    began = recent.now()
    recent.saw(INO)
    recent.wrote({INO: of_length(1)}, 10, began)
    assert shown(recent) is None
    recent.wrote({INO: of_length(2)}, 20, recent.now())
    assert shown(recent) == 2


def test_nothing_is_kept_where_nothing_may_be_out_of_date() -> None:
    recent = Recent(0)
    recent.wrote({INO: of_length(1)}, 10, recent.now())
    assert shown(recent) is None
