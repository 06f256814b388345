"""The application: its routes, the page's files, and error responses."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

import jaxchat
from jaxchat.config.operations import ServeConfig
from jaxchat.serve import messages, models, prompt, responses, schema, texts
from jaxchat.serve.completions import TextCompletion
from jaxchat.serve.guard import Guard
from jaxchat.serve.metrics import Metrics
from jaxchat.serve.models import ServedModel
from jaxchat.serve.response_format import answer_grammar
from jaxchat.serve.scheduler import Scheduler
from jaxchat.serve.schema import ApiError, bad_request
from jaxchat.serve.streaming import Answer, ChatCompletion, EventStream, PendingRequest
from jaxchat.serve.tool_calls import Functions, functions_to_call
from jaxchat.tokenizer.huggingface import tokenizer_config

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
ABSENT = (
    "The page has not been built here; the interface for programs is at /v1. "
    "To build it: npm ci && npm run build, in the folder ui of the repository.\n"
)
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FAILS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schema.ErrorBody},
    "5XX": {"model": schema.ErrorBody},
}


def create_app(
    served: Sequence[ServedModel], config: ServeConfig, *, key: str | None = None
) -> FastAPI:
    """The application that serves models, the first by default; `app.state` has its parts.

    With a `key`, /v1 and /metrics require it. Raises ValueError without any model.
    """
    if not served:
        raise ValueError("there is no model to serve.")
    metrics = Metrics()
    scheduler = Scheduler(served, config, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        scheduler.start()
        yield
        await asyncio.to_thread(scheduler.stop)

    routes = _Routes(served, config, scheduler, metrics)
    files = read_page()
    paths = [*files, *(path for path in routes.paths if "{" not in path)]
    guard = Middleware(Guard, config=config, key=key, requests=metrics.requests, paths=paths)
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
        lifespan=lifespan,
        redirect_slashes=False,
        middleware=[guard, cors] if config.origins else [guard],
    )
    app.include_router(routes.router)
    _add_page(app, files)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.state.scheduler, app.state.metrics = scheduler, metrics
    return app


class _Routes:
    """The endpoints of the interface for programs."""

    def __init__(
        self,
        served: Sequence[ServedModel],
        config: ServeConfig,
        scheduler: Scheduler,
        metrics: Metrics,
    ) -> None:
        self._models, self._config = served, config
        self._scheduler, self._metrics = scheduler, metrics
        self.router = router = APIRouter()
        table: tuple[tuple[str, Callable[..., Any], dict[str, Any]], ...] = (
            ("/v1/models", self.list_models, {}),
            ("/v1/models/{model:path}", self.model, {}),
            ("/v1/chat/completions", self.complete, {"methods": ["POST"]}),
            ("/v1/completions", self.complete_texts, {"methods": ["POST"]}),
            ("/v1/responses", self.respond, {"methods": ["POST"]}),
            ("/v1/responses/{response:path}", self.no_response, {}),
            ("/v1/count", self.count, {"methods": ["POST"]}),
            ("/v1/tokenize", self.tokenize, {"methods": ["POST"]}),
            ("/v1/detokenize", self.detokenize, {"methods": ["POST"]}),
            ("/v1/tokenizer_info", self.tokenizer_info, {}),
            ("/version", self.version, {}),
            ("/health", self.health, {}),
            ("/ready", self.ready, {}),
            ("/metrics", self.metrics, {"response_class": PlainTextResponse}),
        )
        self.paths = [path for path, *_ in table]
        for path, endpoint, options in table:
            router.add_api_route(path, endpoint, responses=FAILS, **options)

    async def list_models(self) -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": list(map(self._card, self._models))}

    async def model(self, model: str) -> dict[str, Any]:
        """One of them."""
        return self._card(self._chosen(model))

    def _chosen(self, name: str | None) -> ServedModel:
        return models.choose(self._models, name, any_name=self._config.any_name)

    def _card(self, model: ServedModel) -> dict[str, Any]:
        return model.card(default=model is self._models[0], ready=self._scheduler.ready)

    async def count(self, body: schema.Conversation) -> schema.TokenCount:
        """The tokens that a conversation takes, and the size of the context."""
        model = self._chosen(body.model)
        tokens = await self._tokens(body.messages, model)
        return schema.TokenCount(prompt_tokens=len(tokens), context=model.context)

    async def complete(self, body: schema.ChatRequest, request: Request) -> Response:
        """An answer to a conversation: whole, or as server-sent events."""
        model = self._chosen(body.model)
        prompt.check_supported(body)
        messages.check_turn(body)
        tokens = await self._tokens(body.messages, model)
        functions = functions_to_call(body.tools, body.tool_choice)
        pending = await self._submitted(body, tokens, model, request, functions)
        completion = ChatCompletion(pending, body, self._scheduler.cancel, list(functions))
        return await self._answered(completion, body, request)

    async def respond(self, body: responses.ResponsesRequest, request: Request) -> Response:
        """An answer to a conversation in the form of OpenAI's Responses API."""
        model = self._chosen(body.model)
        prompt.check_supported(body)
        responses.check_response(body)
        tokens = await self._tokens(responses.read_input(body), model)
        functions = functions_to_call(body.tools, body.tool_choice)
        pending = await self._submitted(body, tokens, model, request, functions)
        cancel = self._scheduler.cancel
        answer = responses.ResponseAnswer(pending, body, cancel, list(functions))
        return await self._answered(answer, body, request)

    async def no_response(self, response: str) -> Response:
        """Refused: no response is stored."""
        message = f"there is no response {response[:80]!r}: responses are not stored here."
        raise ApiError(404, message, code="not_found")

    async def _submitted(
        self,
        body: schema.GenerationRequest,
        tokens: Sequence[int],
        model: ServedModel,
        request: Request,
        functions: Functions,
    ) -> PendingRequest:
        grammar = await asyncio.to_thread(answer_grammar, body, functions, model.tokenizer)
        asked = prompt.engine_request(body, tokens, model, self._config, grammar)
        pending = PendingRequest(model, asked, _client(request))
        self._scheduler.submit(pending)
        self._metrics.prompt_tokens.inc(len(tokens))
        return pending

    async def _answered(
        self, answer: Answer, body: schema.GenerationRequest, request: Request
    ) -> Response:
        if body.stream:
            return EventStream(answer)
        async with answer.attended(request.receive):
            return await asyncio.to_thread(JSONResponse, await answer.whole())

    async def complete_texts(self, body: texts.CompletionRequest, request: Request) -> Response:
        """Texts continued, and the tokens of prompts scored: whole, or as server-sent events."""
        model = self._chosen(body.model)
        prompt.check_supported(body)
        texts.check_completion(body)
        prompts = await asyncio.to_thread(texts.read_prompts, body, model.tokenizer, self._config)
        grammar = await asyncio.to_thread(answer_grammar, body, {}, model.tokenizer)
        completion = TextCompletion(
            body, prompts, model, self._config, self._scheduler, _client(request), grammar
        )
        self._metrics.prompt_tokens.inc(sum(len(ids) for _, ids in prompts))
        return await self._answered(completion, body, request)

    async def tokenize(self, body: texts.TokenizeRequest) -> texts.TokenizeAnswer:
        """The ids of a text or of a conversation."""
        model = self._chosen(body.model)
        if body.messages is not None:
            ids = await self._tokens(body.messages, model)
        elif body.prompt is not None:
            begin = body.add_special_tokens is not False
            ids = await asyncio.to_thread(texts.text_ids, body.prompt, model.tokenizer, begin=begin)
        else:
            raise bad_request("there is neither a prompt nor messages to tokenize.", "prompt")
        return texts.TokenizeAnswer(
            count=len(ids),
            max_model_len=model.context,
            tokens=ids,
            token_strs=texts.names(ids, model.tokenizer) if body.return_token_strs else None,
        )

    async def detokenize(self, body: texts.DetokenizeRequest) -> texts.DetokenizeAnswer:
        """The text of ids, with the names of special tokens."""
        model = self._chosen(body.model)
        text = await asyncio.to_thread(texts.text_of, body.tokens, model.tokenizer)
        return texts.DetokenizeAnswer(prompt=text)

    async def tokenizer_info(self, model: str | None = None) -> dict[str, Any]:
        """The content of tokenizer_config.json, as an export of the model has it."""
        found = self._chosen(model)
        names = list(found.tokenizer.specials)
        return {**tokenizer_config(names, found.context), "vocab_size": found.config.vocab_size}

    async def version(self) -> dict[str, str]:
        """The version of jaxchat."""
        return {"version": jaxchat.__version__}

    async def _tokens(
        self, conversation: Sequence[schema.InMessage], model: ServedModel
    ) -> list[int]:
        messages.check_limits(conversation, self._config)
        return await asyncio.to_thread(messages.prompt_tokens, conversation, model.tokenizer)

    async def health(self) -> Response:
        """Whether the server still works; 503 when it must be restarted."""
        states = self._scheduler.health()
        well = bool(states) and all(state == "ok" for state in states.values())
        content = {"status": "ok" if well else "failed", "models": states}
        return JSONResponse(content, 200 if well else 503)

    async def ready(self) -> Response:
        """Whether the server takes requests now; 503 while it compiles, with the share of its
        programs that are compiled, and while it shuts down.
        """
        if self._scheduler.ready:
            return JSONResponse({"status": "ready"})
        error = self._scheduler.not_ready()
        compiled = round(self._scheduler.compiled, 3)
        starting = {"status": "compiling" if compiled < 1 else "ending", "compiled": compiled}
        return JSONResponse({**starting, **error.body}, error.status, error.headers)

    async def metrics(self) -> Response:
        """Counters for Prometheus."""
        return Response(self._metrics.text(), media_type=METRICS_TYPE)


def _client(request: Request) -> str:
    """Whose turn it is in the queue."""
    return request.client.host if request.client is not None else ""


@dataclass(frozen=True)
class PageFile:
    """A file of the page, with its headers."""

    data: bytes
    headers: dict[str, str]


def read_page(folder: Path = PAGE) -> dict[str, PageFile]:
    """Path -> file of a folder, with the page itself at "/"; files of unknown types are left out.

    Names under assets/ contain a hash of their content, so browsers may cache them for ever.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = TYPES.get(path.suffix)
        if kind is None or not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        lasting = name.startswith("assets/")
        data = path.read_bytes()
        headers = {
            "content-type": kind,
            "cache-control": "public, max-age=31536000, immutable" if lasting else "no-cache",
            "etag": f'"{hashlib.sha256(data).hexdigest()[:32]}"',
        }
        found["/" if name == "index.html" else f"/{name}"] = PageFile(data, headers)
    return found


def _add_page(app: FastAPI, files: dict[str, PageFile]) -> None:
    async def send(request: Request) -> Response:
        file = files.get(request.scope["path"])
        if file is None:
            return PlainTextResponse(ABSENT, 404)
        if request.headers.get("if-none-match") == file.headers["etag"]:
            return Response(status_code=304, headers=file.headers)
        return Response(file.data, headers=file.headers)

    for path in {"/": None, **files}:
        app.add_route(path, send, methods=["GET"], include_in_schema=False)


async def _api_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = max(error.errors(), key=lambda problem: len(problem["loc"]))  # of a union, the closest
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
    message, code = {
        404: (
            "there is nothing at this path; see /v1/models and /v1/chat/completions.",
            "not_found",
        ),
        405: ("this path has no such method.", "method_not_allowed"),
    }.get(error.status_code, (error.detail, None))
    found = ApiError(error.status_code, message, code=code, headers=error.headers)
    return await _api_error(request, found)


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Coroutine[Any, Any, Response]]] = {
    ApiError: _api_error,
    RequestValidationError: _invalid,
    HTTPException: _http_error,
}
