"""The names of levels, and what they lack."""

import pytest

from jaxchat.tools.sandbox import levels
from jaxchat.tools.sandbox.confine import MECHANISMS
from jaxchat.tools.sandbox.levels import REQUIRED, Level


def test_full_is_everything() -> None:
    assert levels.name_of(tuple(MECHANISMS)) == "full"
    for name in MECHANISMS:
        assert levels.name_of([other for other in MECHANISMS if other != name]) != "full"


def test_without_a_required_mechanism_nothing_is_run() -> None:
    for group in REQUIRED:
        kept = [name for name in MECHANISMS if name not in group]
        assert levels.name_of(kept) == "none", group
    only = [group[0] for group in REQUIRED]
    assert levels.name_of(only) == "partial"


def test_either_landlock_or_a_private_root_guards_files() -> None:
    for missing in ("landlock", "private root"):
        assert levels.name_of([name for name in MECHANISMS if name != missing]) == "partial"


def test_what_is_missing_is_named_in_the_order_of_the_mechanisms() -> None:
    level = Level("partial", ("seccomp", "no_new_privs", "landlock", "no capabilities"), False)
    assert level.missing == (
        "rlimits", "private root", "pid namespace", "net namespace", "ipc namespace"
    )  # fmt: skip
    assert Level("full", tuple(MECHANISMS), True).missing == ()


def test_the_level_here_is_one_of_its_mechanisms() -> None:
    here = levels.detect()
    assert here.name == levels.name_of(here.mechanisms)
    assert levels.detect() is here
    assert set(here.mechanisms) | set(here.missing) == set(MECHANISMS)


def test_a_machine_that_cannot_even_start_one_has_no_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels.process, "command", lambda: ["/nonexistent/python"])
    levels.detect.cache_clear()
    try:
        assert levels.detect() == Level("none", (), False)
    finally:
        levels.detect.cache_clear()
