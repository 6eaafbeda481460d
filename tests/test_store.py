"""`store`: the one value with behaviour."""

from __future__ import annotations

from bffs.store import Interrupt


def test_what_is_being_received_is_broken_off() -> None:
    broken: list[int] = []
    interrupt = Interrupt()
    interrupt.arm(lambda: broken.append(1))
    assert not broken
    interrupt()
    assert broken == [1]


def test_what_is_about_to_be_received_is_broken_off_when_it_begins() -> None:
    broken: list[int] = []
    interrupt = Interrupt()
    interrupt()
    interrupt.arm(None)
    interrupt.arm(lambda: broken.append(1))
    assert broken == [1]


def test_what_is_over_is_not_broken_off_nor_what_goes_on_all_the_same() -> None:
    broken: list[int] = []
    interrupt = Interrupt()
    interrupt.arm(lambda: broken.append(1))
    interrupt.arm(None)
    interrupt()
    assert not broken
    interrupt.reset()
    interrupt.arm(lambda: broken.append(1))
    assert not broken
