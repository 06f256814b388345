"""What the host hands to the device."""

from jaxchat.inference.jitted import slots_to_fill


def test_slots_are_filled_up_with_one_that_there_is_not():
    assert slots_to_fill([3, 1], 4).tolist() == [3, 1, 4, 4]
