"""The application: its routes, and what becomes of errors (layer 4)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

import jaxchat
from jaxchat.config.operations import ServeConfig
from jaxchat.serve import metrics, models, page_files, prompt, schema
from jaxchat.serve.answer import Answer, EventStream
from jaxchat.serve.failures import ApiError, bad_request, unavailable
from jaxchat.serve.guard import BodyError, Guard
from jaxchat.serve.models import ServedModel
from jaxchat.serve.scheduler import Scheduler
from jaxchat.serve.ticket import Ticket, Times

FAILS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schema.ErrorBody},
    "5XX": {"model": schema.ErrorBody},
}


def create_app(
    served: Sequence[ServedModel], config: ServeConfig, *, key: str | None = None
) -> FastAPI:
    """The application over models, of which the first is the default; `app.state` has its parts.

    With a `key`, /v1 and /metrics are for those who send it. Raises ValueError without any model.
    """
    if not served:
        raise ValueError("there is no model to serve.")
    counted = metrics.Metrics()
    scheduler = Scheduler(served, config, counted)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        del app
        scheduler.start()
        yield
        await asyncio.to_thread(scheduler.stop)

    routes = _Routes(served, config, scheduler, counted)
    files = page_files.read_page()
    paths = [*files, *("/v1/models", "/v1/chat/completions", "/v1/count"), *PLAIN]
    guard = Middleware(Guard, config=config, key=key, metrics=counted, paths=paths)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=config.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )
    app = FastAPI(
        title="jaxchat",
        version=jaxchat.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        redirect_slashes=False,
        middleware=[guard, cors] if config.origins else [guard],
    )
    app.include_router(routes.router)
    _add_page(app, files)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.state.scheduler, app.state.metrics = scheduler, counted
    return app


PLAIN = ("/health", "/ready", "/metrics")


class _Routes:
    """What the paths answer."""

    def __init__(
        self,
        served: Sequence[ServedModel],
        config: ServeConfig,
        scheduler: Scheduler,
        counted: metrics.Metrics,
    ) -> None:
        self._models, self._config = served, config
        self._scheduler, self._metrics = scheduler, counted
        self.router = router = APIRouter()
        router.add_api_route("/v1/models", self.list_models, responses=FAILS)
        router.add_api_route("/v1/models/{model:path}", self.model, responses=FAILS)
        router.add_api_route(
            "/v1/chat/completions", self.complete, methods=["POST"], responses=FAILS
        )
        router.add_api_route("/v1/count", self.count, methods=["POST"], responses=FAILS)
        router.add_api_route("/health", self.health, responses=FAILS)
        router.add_api_route("/ready", self.ready, responses=FAILS)
        router.add_api_route(
            "/metrics", self.metrics, response_class=PlainTextResponse, responses=FAILS
        )

    async def list_models(self) -> dict[str, Any]:
        """The models that are served."""
        cards = [model.card(default=not number) for number, model in enumerate(self._models)]
        return {"object": "list", "data": cards}

    async def model(self, model: str) -> dict[str, Any]:
        """One of them."""
        found = models.choose(self._models, model)
        return found.card(default=found is self._models[0])

    async def count(self, body: schema.Conversation) -> schema.TokenCount:
        """How many tokens a conversation takes, of how many that fit."""
        model = models.choose(self._models, body.model)
        tokens = await self._tokens(body, model)
        return schema.TokenCount(prompt_tokens=len(tokens), context=model.context)

    async def complete(self, body: schema.ChatRequest, request: Request) -> Response:
        """An answer to a conversation: whole, or as server-sent events."""
        model = models.choose(self._models, body.model)
        prompt.check_supported(body)
        tokens = await self._tokens(body, model)
        asked = prompt.engine_request(body, tokens, model, self._config)
        client = request.client.host if request.client is not None else ""
        ticket = Ticket(model, asked, client, Times(time.monotonic()))
        self._scheduler.submit(ticket)
        self._metrics.prompt_tokens.inc(len(tokens))
        answer = Answer(self._scheduler, ticket, body)
        if body.stream:
            return EventStream(answer)
        async with answer.attended(request.receive):
            return JSONResponse(await answer.whole())

    async def _tokens(self, body: schema.Conversation, model: ServedModel) -> list[int]:
        prompt.check_limits(body.messages, self._config)
        return await asyncio.to_thread(prompt.prompt_tokens, body.messages, model.tokenizer)

    async def health(self) -> Response:
        """Whether the server can still do its work; 503 when it must be started again."""
        told = self._scheduler.health()
        well = bool(told) and all(state == "ok" for state in told.values())
        return JSONResponse(
            {"status": "ok" if well else "failed", "models": told}, 200 if well else 503
        )

    async def ready(self) -> Response:
        """Whether it takes requests now; 503 while it warms up or ends."""
        if not self._scheduler.ready:
            raise unavailable("the server is starting or ending.", "not_ready")
        return JSONResponse({"status": "ready"})

    async def metrics(self) -> Response:
        """Counters for Prometheus."""
        return Response(self._metrics.text(), media_type=metrics.CONTENT_TYPE)


def _add_page(app: FastAPI, files: dict[str, page_files.PageFile]) -> None:
    def route(file: page_files.PageFile) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def send(request: Request) -> Response:
            if request.headers.get("if-none-match") == file.headers["etag"]:
                return Response(status_code=304, headers=file.headers)
            return Response(file.data, headers=file.headers)

        return send

    async def absent(request: Request) -> Response:
        del request
        return PlainTextResponse(page_files.ABSENT, 404)

    for path, file in files.items():
        app.add_route(path, route(file), methods=["GET"], include_in_schema=False)
    if "/" not in files:
        app.add_route("/", absent, methods=["GET"], include_in_schema=False)


async def _api_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = max(error.errors(), key=lambda problem: len(problem["loc"]))  # of a union, the nearest
    names = [name for name in first["loc"] if name != "body"]
    if first["type"] == "json_invalid":
        message, param = "the body is not valid JSON.", None
    elif not names:
        message, param = "the body must be a JSON object (content-type application/json).", None
    else:
        param = _param(names)
        message = f"{param}: {first['msg']}."
    return await _api_error(request, bad_request(message, param))


def _param(names: Sequence[int | str]) -> str:
    """messages[0].content, without the members of unions that pydantic also names."""
    known = [n for n in names if isinstance(n, int) or (n.isidentifier() and n != "str")]
    return "".join(f"[{n}]" if isinstance(n, int) else f".{n}" for n in known).lstrip(".")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, BodyError):
        return await _api_error(request, error.error)
    message = {
        404: "there is nothing at this path; see /v1/models and /v1/chat/completions.",
        405: "this path has no such method.",
    }.get(error.status_code, error.detail)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    told = ApiError(error.status_code, message, code=code, headers=error.headers)
    return await _api_error(request, told)


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Coroutine[Any, Any, Response]]] = {
    ApiError: _api_error,
    RequestValidationError: _invalid,
    HTTPException: _http_error,
}
