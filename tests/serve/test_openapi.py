"""Schemathesis: whatever the description allows, and what it does not, never fails the server."""

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

EXAMPLES = 15  # of each kind and path
PATHS = {
    "/v1/models": "GET",
    "/v1/models/{model}": "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/responses": "POST",
    "/v1/count": "POST",
    "/v1/tokenize": "POST",
    "/v1/detokenize": "POST",
    "/v1/tokenizer_info": "GET",
    "/version": "GET",
    "/health": "GET",
    "/metrics": "GET",
}


@pytest.fixture(scope="module")
def description(live_server):
    return live_server.get("/openapi.json").json()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", PATHS)
def test_no_request_is_a_server_error(description, live_server, path, mode):
    operation = schemathesis.openapi.from_dict(description)[path][PATHS[path]]
    if mode is GenerationMode.NEGATIVE and PATHS[path] == "GET":
        pytest.skip("there is nothing to get wrong")
    statuses = set()
    with requests.Session() as session:
        session.trust_env = False

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def try_it(case):
            answer = case.call(base_url=live_server.url, session=session, timeout=60)
            statuses.add(answer.status_code)
            case.validate_response(answer, checks=[not_a_server_error])

        try_it()
    assert statuses
    assert mode is GenerationMode.POSITIVE or 400 in statuses


def test_the_description_names_every_path(description):
    assert set(description["paths"]) == {*PATHS, "/v1/responses/{response}", "/ready"}
    answers = description["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(answers) == {"200", "4XX", "5XX"}
