"""Compiler options, with the compiler that is here: what works is kept, what does not is named."""

from dataclasses import replace

import pytest

from jaxchat.config.derive import derive_model
from jaxchat.config.schema import ComputeConfig
from jaxchat.errors import ConfigError
from jaxchat.model.backend import COLLECTIVE_TIMEOUT, Compute, backend
from jaxchat.model.capabilities import choose_compute, choose_options, parse_option, refusal

REAL = "xla_cpu_enable_fast_min_max"  # an option that this compiler has
UNKNOWN = "xla_gpu_no_such_option"


def test_only_several_gpus_get_an_option_and_it_ends_a_hang():
    assert backend("cpu").options == backend("tpu").options == ()
    assert backend("gpu").options == (COLLECTIVE_TIMEOUT,)
    model, gpu = derive_model(1, "classic", 64), replace(backend("gpu"), attention="blocked")
    assert choose_compute(ComputeConfig(), model, devices=8, on=gpu).options == gpu.options
    assert choose_compute(ComputeConfig(), model, devices=1, on=gpu).options == ()
    assert choose_options(()) == ((), ())


def test_what_works_is_kept_and_what_is_unknown_is_named_with_the_compilers_words():
    kept, refused = choose_options([(UNKNOWN, True), (REAL, True)])
    assert kept == ((REAL, True),)
    assert [name for name, _ in refused] == [UNKNOWN]
    assert "No such compile option" in refused[0][1]


def test_a_value_that_is_refused_is_not_called_unknown():
    kept, refused = choose_options([(REAL, "perhaps")])
    assert kept == ()
    line = Compute(refused=refused).refusals()
    assert line.startswith(f"; XLA refuses {REAL}: ")
    assert "'perhaps' is not a valid bool value" in line


def test_what_is_wanted_replaces_ours():
    assert choose_options([(REAL, True)], [f"{REAL}=false"]) == (((REAL, False),), ())


@pytest.mark.parametrize("wanted", ["xla_no_such_option=1", f"{REAL}=perhaps"])
def test_what_is_wanted_and_refused_is_an_error_with_the_compilers_words(wanted):
    with pytest.raises(ConfigError, match=wanted.partition("=")[0]) as caught:
        choose_options((), [wanted])
    assert str(caught.value).startswith("compute.compiler_options: ")


def test_our_options_are_known_here():
    # the options of all platforms are one list, so a CPU's compiler knows those of a GPU
    assert refusal(backend("gpu").options) is None, "find the new name of this option"


def test_an_empty_value_is_an_option_too():
    command_buffers_off = "xla_gpu_enable_command_buffer="
    config = ComputeConfig(compiler_options=(command_buffers_off,))
    assert choose_options((), config.compiler_options) == (
        (("xla_gpu_enable_command_buffer", ""),),
        (),
    )


def test_values_are_read_as_toml_would():
    texts = ("a=true", "b=false", "c=12", "d=-3", "e=FUSION,CUBLAS", "f=x=y")
    values = [parse_option(text)[1] for text in texts]
    assert values == [True, False, 12, -3, "FUSION,CUBLAS", "x=y"]
    assert [type(value) for value in values[:3]] == [bool, bool, int]
