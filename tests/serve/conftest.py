"""A home with a trained model, and a real server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from live_server import LiveServer, serve, slowed
from tiny_model import make_home

from jaxchat.config.operations import ServeConfig
from jaxchat.serve.models import ServedModel, load_models


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HOME with the run `tiny`, of which the stages mid, sft and rl can be served."""
    return make_home(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def models(trained_home: Path) -> list[ServedModel]:
    """tiny/rl, which knows its answers, and tiny/sft, which knows them less well."""
    return load_models(trained_home, [(None, None), ("tiny", "sft")], ServeConfig(slots=4))


@pytest.fixture(scope="session")
def live_server(models: list[ServedModel]) -> Iterator[LiveServer]:
    """A server of these models, without a key."""
    with serve(models) as server:
        yield server


@pytest.fixture(scope="session")
def slow_server(models: list[ServedModel]) -> Iterator[LiveServer]:
    """The same, five dispatches (of 8 tokens) a second: slow enough to stop it half-way."""
    with serve([slowed(model, 0.2) for model in models]) as server:
        yield server


@pytest.fixture
def client(live_server: LiveServer) -> Iterator[openai.OpenAI]:
    """OpenAI's package, as a client of the server."""
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=live_server.api, api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client
