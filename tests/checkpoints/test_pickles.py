"""Pickles are read and never executed: what they may say, and what becomes of those that attack."""

import collections
import contextlib
import io
import os
import pickle

import numpy as np
import pytest

from jaxchat.checkpoints.pickles import MAX_BYTES, Record, RefusedPickle, read_pickle

NAMES = {
    "collections OrderedDict": lambda arguments: dict(arguments),
    "torch FloatStorage": None,
    "some Class": lambda arguments: Record(),
}
VALUE = {
    "text": ["", "é\N{SNOWMAN}" * 200, "x" * 300],
    b"bytes": (b"", b"a" * 300, (1, (2, 3), (4, 5, 6, 7))),
    3: [None, True, False, 0, -1, 255, 70_000, -(2**40), 2**200, 1.5, float("inf")],
    "shared": [[1, 2]] * 3,
    "empty": [(), [], {}],
}


@pytest.fixture
def traps(monkeypatch):
    """Notes every call of what attacks call, and does not do it."""
    called = []
    for name in ("system", "popen", "execv", "remove"):
        monkeypatch.setattr(os, name, lambda *args, name=name: called.append(name))
    for name in ("eval", "exec", "open"):
        monkeypatch.setattr(f"builtins.{name}", lambda *args, name=name: called.append(name))
    return called


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_as_pickle_reads_them(protocol):
    value = VALUE if protocol > 2 else {k: v for k, v in VALUE.items() if k != b"bytes"}
    found = read_pickle(pickle.dumps(value, protocol), {})
    assert found == value
    assert found["shared"][0] is found["shared"][2]


@pytest.mark.parametrize("protocol", [2, 4])
def test_an_ordered_dict_is_a_dict_and_its_attributes_are_left(protocol):
    value = collections.OrderedDict(a=1, b=2)
    value._metadata = collections.OrderedDict({"": {"version": 1}})
    assert read_pickle(pickle.dumps(value, protocol), NAMES) == {"a": 1, "b": 2}


class Attack:
    def __init__(self, function, *arguments):
        self.how = (function, arguments)

    def __reduce__(self):
        return self.how


ATTACKS = {
    "posix.system": Attack(os.system, "touch pwned"),
    "nested in data": {"weights": [1, (2, [Attack(os.system, "touch pwned")])]},
    "builtins.eval": Attack(eval, "__import__('os').system('id')"),
    "builtins.exec": Attack(exec, "import os"),
    "builtins.getattr": Attack(getattr, "", "format"),
    "numpy": np.arange(3),
    "file": Attack(io.open, "pwned", "w"),
}


PICKLED = {
    f"{name} {protocol}": pickle.dumps(attack, protocol)
    for name, attack in ATTACKS.items()
    for protocol in (0, 1, 2, 4, 5)
}


@pytest.mark.parametrize("data", PICKLED.values(), ids=PICKLED.keys())
def test_no_function_is_ever_called(data, traps):
    with pytest.raises(RefusedPickle) as caught:
        read_pickle(data, NAMES)
    assert traps == []
    assert "\n" not in str(caught.value)


def test_what_is_refused_is_named():
    with pytest.raises(RefusedPickle, match=r"names 'posix\.system', which no weights need"):
        read_pickle(pickle.dumps(Attack(os.system, "id"), 2), NAMES)


def test_a_name_that_may_be_mentioned_may_not_be_called():
    call = b"\x80\x02ctorch\nFloatStorage\n)R."
    with pytest.raises(RefusedPickle, match="calls what cannot be called"):
        read_pickle(call, NAMES)
    for called in (b"K\x01", b"X\x02\x00\x00\x00os", b"}"):  # a number, a text, a dict
        with pytest.raises(RefusedPickle, match="calls what cannot be called"):
            read_pickle(b"\x80\x02" + called + b")R.", NAMES)


@pytest.mark.parametrize(
    "data",
    {
        "old global": b"(S'id'\nios\nsystem\n.",
        "object": b"(cos\nsystem\nX\x02\x00\x00\x00ido.",
        "extension": b"\x80\x02\x82\x01.",
        "newobj_ex": b"\x80\x04csome\nClass\n)}\x92.",
        "build of a name": b"\x80\x02ctorch\nFloatStorage\n}b.",
        "build of a number": b"\x80\x02K\x01}b.",
        "persistent": b"\x80\x02U\x01aQ.",
        "no end": b"\x80\x02}",
        "empty": b"",
        "nothing on the stack": b"\x80\x02.",
        "pop below a mark": b"\x80\x02(.",
        "mark without end": b"\x80\x02t.",
        "tuple of too few": b"\x80\x02K\x01\x87.",
        "memo that is not there": b"\x80\x02h\x05.",
        "claims four gigabytes": b"\x80\x02X\xff\xff\xff\xffabc.",
        "claims two gigabytes of number": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
        "odd items": b"\x80\x02}(K\x01u.",
        "items into a number": b"\x80\x02K\x01(K\x01K\x02u.",
        "append to a tuple": b"\x80\x02)K\x01a.",
        "a list as key": b"\x80\x02}]K\x01s.",
        "no opcode": b"\x80\x02\xff.",
        "not utf-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
        "stack global of numbers": b"\x80\x04K\x01K\x02\x93.",
    }.items(),
    ids=lambda item: item[0],
)
def test_odd_pickles_are_one_sentence(data, traps):
    with pytest.raises(RefusedPickle) as caught:
        read_pickle(data[1], NAMES)
    assert traps == []
    assert "\n" not in str(caught.value)


def test_no_pickle_is_read_that_is_far_too_large():
    with pytest.raises(RefusedPickle, match="more than"):
        read_pickle(bytes(MAX_BYTES + 1), NAMES)


def test_nested_tuples_cannot_make_keys():
    """Each level doubles what hashing takes: with 200 levels it would never end."""
    doubled = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200))
    with pytest.raises(RefusedPickle, match="damaged"):
        read_pickle(b"\x80\x02}K\x01" + doubled + b"K\x01s.", NAMES)


def test_every_truncation_and_every_changed_byte_is_refused_or_harmless(traps):
    data = pickle.dumps({"a": [1, 2.5], "b": (b"x", "yz"), "c": {"d": None}}, 4)
    rng = np.random.default_rng(0)
    for end in range(len(data)):
        with pytest.raises(RefusedPickle):
            read_pickle(data[:end], NAMES)
    for _ in range(3_000):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        with contextlib.suppress(RefusedPickle):
            read_pickle(bytes(changed), NAMES)
    assert traps == []


def test_records_take_state_and_nothing_else():
    record = read_pickle(b"\x80\x04csome\nClass\n)\x81}K\x01K\x02sb.", NAMES)
    assert type(record) is Record
    assert record.state == {1: 2}


def test_persistent_ids_are_the_callers():
    data = b"\x80\x02(K\x01K\x02tQ."
    assert read_pickle(data, {}, lambda value: ("kept", value)) == ("kept", (1, 2))
