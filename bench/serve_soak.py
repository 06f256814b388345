"""Soak test of the server: clients of every kind, and the state of the server afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

CLIENTS = 64
GROWTH, SLACK = 1.05, 16_000_000  # memory of the last third beside the middle one: x and bytes
SAMPLE_SECONDS = 2.0
ALLOWED = {200, 429, 503}  # what an honest request may get: an answer, or "later"
OTHERS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")  # addresses the clients come from


class Wrong(Exception):
    """Something that is not the client's fault."""


def request_bytes(
    path: str, body: bytes, *, length: int | None = None, method: str = "POST"
) -> bytes:
    """An HTTP request; `length` is the content length that it claims."""
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


class Clients:
    """Clients of the server at a port."""

    def __init__(self, port: int, seed: int) -> None:
        self.port, self.random, self.counts = port, random.Random(seed), Counter[str]()
        self.kinds: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (6, self.stream), (4, self.whole), (6, self.cancel), (3, self.leave), (2, self.garbage),
            (2, self.half), (2, self.nonsense), (1, self.too_long), (1, self.slow), (1, self.idle),
            (1, self.look),
        ]  # fmt: skip

    async def act(self) -> None:
        """Does one thing."""
        kinds, weights = [kind for _, kind in self.kinds], [weight for weight, _ in self.kinds]
        (kind,) = self.random.choices(kinds, weights)
        try:
            await asyncio.wait_for(kind(), 180)
            self.counts[kind.__name__] += 1
        except (Wrong, OSError, TimeoutError) as error:
            self.counts["wrong"] += 1
            print(f"{kind.__name__}: {type(error).__name__} {error}", flush=True)

    async def open(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which `data` was sent."""
        local = (self.random.choice(OTHERS), 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=local)
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        return reader, writer

    def chat(self, **body: object) -> bytes:
        """A request for an answer."""
        text = " ".join(self.random.choices("why is the sky blue Grüße 你好 👋🏽".split(), k=9))
        asked = {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.random.randint(1, 80),
            "temperature": self.random.choice([0, 0.7, 1.5]),
            **body,
        }
        return request_bytes("/v1/chat/completions", json.dumps(asked).encode())

    async def exchange(self, data: bytes) -> tuple[int, bytes]:
        """Status and body of an answer read to its end."""
        reader, writer = await self.open(data)
        try:
            answer = await reader.read()
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1.1 (\d+)", head)
        if found is None:
            raise Wrong(f"no answer: {answer[:200]!r}")
        self.counts[f"status {int(found[1])}"] += 1
        return int(found[1]), body

    def expect(self, status: int, allowed: set[int], body: bytes) -> None:
        """Raises Wrong for another status."""
        if status not in allowed:
            raise Wrong(f"status {status}: {body[:300]!r}")

    async def stream(self) -> None:
        status, body = await self.exchange(self.chat(stream=True, n=self.random.choice([1, 1, 2])))
        self.expect(status, ALLOWED, body)
        late = b"queue_timeout" in body
        if status == 200 and not late and b"data: [DONE]" not in body:
            raise Wrong(f"a stream without an end: {body[-300:]!r}")

    async def whole(self) -> None:
        status, body = await self.exchange(self.chat(logprobs=True, top_logprobs=3))
        self.expect(status, ALLOWED, body)

    async def cancel(self) -> None:
        reader, writer = await self.open(self.chat(stream=True, max_tokens=400))
        for _ in range(self.random.randint(0, 6)):
            await reader.read(self.random.randint(1, 2000))
        writer.transport.abort() if self.random.random() < 0.5 else writer.close()

    async def leave(self) -> None:
        _, writer = await self.open(self.chat(max_tokens=400))
        await asyncio.sleep(self.random.random())
        writer.transport.abort()

    async def garbage(self) -> None:
        reader, writer = await self.open(self.random.randbytes(self.random.randint(1, 5000)))
        await asyncio.sleep(self.random.random() / 4)
        writer.transport.abort()
        del reader

    async def half(self) -> None:
        data = self.chat()
        _, writer = await self.open(data[: self.random.randint(1, len(data) - 1)])
        await asyncio.sleep(self.random.random())
        writer.transport.abort()

    async def nonsense(self) -> None:
        bodies = [b"{", b"[]", b'{"messages": 5}', b"\xff", b'{"messages": [], "n": -1}', b"null"]
        body = self.random.choice(bodies)
        status, answer = await self.exchange(request_bytes("/v1/chat/completions", body))
        self.expect(status, {400}, answer)

    async def too_long(self) -> None:
        messages = [{"role": "user", "content": "long " * self.random.randint(2000, 60_000)}]
        status, body = await self.exchange(self.chat(messages=messages))
        self.expect(status, {400}, body)

    async def slow(self) -> None:
        reader, writer = await self.open(self.chat(stream=True))
        while await reader.read(200):
            await asyncio.sleep(0.02)
        writer.close()

    async def idle(self) -> None:
        _, writer = await self.open(b"")
        await asyncio.sleep(2 * self.random.random())
        writer.close()

    async def look(self) -> None:
        path = self.random.choice(["/v1/models", "/health", "/metrics", "/ready", "/"])
        status, body = await self.exchange(request_bytes(path, b"", method="GET"))
        self.expect(status, {200, 404} if path == "/" else {200}, body)


def soak(port: int, process: int, seconds: float, seed: int) -> int:
    """Lets the clients loose; 0 where the server is as it was."""
    clients, memory = Clients(port, seed), list[int]()
    end = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            await clients.act()

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(resident(process))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def all_of_them() -> None:
        await asyncio.gather(watch(), *(client() for _ in range(CLIENTS)))

    asyncio.run(all_of_them())
    faults = clients.counts["wrong"] + left_over(port) + grown(memory)
    print(", ".join(f"{name} {count}" for name, count in sorted(clients.counts.items())))
    print("as it was" if not faults else f"{faults} faults")
    return 1 if faults else 0


def resident(process: int) -> int:
    """Bytes that a process holds."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"^VmRSS:\s*(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def gauges(port: int) -> dict[str, float]:
    """The gauges of /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def left_over(port: int) -> int:
    """Slots and queue places that are still occupied without a client."""
    deadline = time.monotonic() + 60
    while (found := gauges(port))["jaxchat_active"] or found["jaxchat_queue_depth"]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    active, waiting = found["jaxchat_active"], found["jaxchat_queue_depth"]
    failed = sum(value for name, value in found.items() if 'status="500"' in name)
    print(f"left over: {active:g} active, {waiting:g} waiting; answers with 500: {failed:g}")
    return int(active + waiting + failed)


def grown(memory: list[int]) -> int:
    """1 where the last third holds more than the middle one."""
    third = max(1, len(memory) // 3)
    first, middle, last = memory[0], memory[third : 2 * third], memory[-third:]
    mean = [sum(part) / max(1, len(part)) for part in (middle, last)]
    print(f"memory: {first / 1e6:.0f} MB at first, {mean[0] / 1e6:.0f} MB in the middle third, "
          f"{mean[1] / 1e6:.0f} MB in the last")  # fmt: skip
    return int(mean[1] > GROWTH * mean[0] and mean[1] - mean[0] > SLACK)
