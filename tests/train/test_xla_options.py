"""Compiler options, with the compiler that is here: what works is kept, what does not is named."""

import pytest

from jaxchat.errors import ConfigError
from jaxchat.model.backend import OVERLAP, backend
from jaxchat.model.capabilities import choose_options, parse_option, refusal

REAL = "xla_cpu_enable_fast_min_max"  # an option that this compiler has


def test_a_cpu_and_a_single_gpu_try_nothing_and_several_try_all():
    assert backend("cpu").overlap == backend("tpu").overlap == ()
    assert backend("gpu").overlap == OVERLAP
    assert choose_options(()) == ((), ())


def test_what_works_is_kept_and_what_is_unknown_is_dropped_by_name():
    tried = ((("xla_gpu_no_such_option",), True), ((REAL,), True))
    assert choose_options(tried) == (((REAL, True),), ("xla_gpu_no_such_option",))


def test_an_option_goes_by_the_name_that_this_compiler_knows():
    assert choose_options([(("xla_cpu_of_the_future", REAL), False)]) == (((REAL, False),), ())


def test_a_value_that_is_refused_drops_the_option():
    assert choose_options([((REAL,), "perhaps")]) == ((), (REAL,))


def test_what_is_wanted_replaces_what_is_tried():
    kept, dropped = choose_options([((REAL,), True)], [f"{REAL}=false"])
    assert (kept, dropped) == (((REAL, False),), ())


@pytest.mark.parametrize("wanted", ["xla_no_such_option=1", f"{REAL}=perhaps"])
def test_what_is_wanted_and_refused_is_an_error_with_the_compilers_words(wanted):
    with pytest.raises(ConfigError, match=wanted.partition("=")[0]) as caught:
        choose_options((), [wanted])
    assert str(caught.value).startswith("compute.compiler_options: ")


def test_the_candidates_are_known_here_by_one_of_their_names():
    # the options of all backends are one list, so that a CPU's compiler knows a GPU's names
    kept, dropped = choose_options(OVERLAP)
    assert not dropped, "find the new names of these options, and put them first in CANDIDATES"
    assert refusal(kept) is None
    assert len(kept) == len(OVERLAP)


def test_values_are_read_as_toml_would():
    texts = ("a=true", "b=false", "c=12", "d=-3", "e=FUSION,CUBLAS", "f=x=y")
    values = [parse_option(text)[1] for text in texts]
    assert values == [True, False, 12, -3, "FUSION,CUBLAS", "x=y"]
    assert [type(value) for value in values[:3]] == [bool, bool, int]
