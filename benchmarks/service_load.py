"""Clients of a service, in a process of their own: `python -m benchmarks.service_load`.

Reads one plan as JSON from standard input, and writes what came back as JSON. A closed plan has
`clients` that each wait for their answer; a plan with `rate` sends that many requests a second,
whatever came back. A refused client waits as `Retry-After` says. It imports little, and uses the
quickest event loop: it should leave the cores to the service.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

__all__ = ["Client", "Outcome", "Plan", "apply_load", "multipart", "raw"]

MOST_CONNECTIONS = 512


@dataclass(frozen=True)
class Plan:
    """Requests to send: files that hold whole HTTP requests, sent in turns.

    Attributes:
        address: `http://host:port`.
        requests: files of requests.
        seconds: for which requests are sent.
        clients: connections; those of a closed plan wait for their answers.
        rate: requests a second of an open plan; 0 for a closed one.
    """

    address: str
    requests: tuple[str, ...]
    seconds: float
    clients: int = 1
    rate: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Statuses and latencies.

    Attributes:
        statuses: number of answers, by HTTP status; "0" for a broken connection.
        latencies: seconds of the answers with status 200, sorted.
        seconds: from the first request to the last answer.
    """

    statuses: dict[str, int]
    latencies: list[float]
    seconds: float

    @property
    def per_second(self) -> float:
        """Answers with status 200 a second."""
        return len(self.latencies) / self.seconds

    def quantile(self, q: float) -> float:
        """A quantile of the latencies, in seconds; NaN without any."""
        if not self.latencies:
            return float("nan")
        return self.latencies[min(int(q * len(self.latencies)), len(self.latencies) - 1)]

    def share(self, status: str) -> float:
        """Share of answers with a status."""
        return self.statuses.get(status, 0) / max(1, sum(self.statuses.values()))


def apply_load(plan: Plan) -> Outcome:
    """Send the requests of a plan from another process."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.service_load"], input=json.dumps(asdict(plan)),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return Outcome(**json.loads(run.stdout))


def raw(path: str, body: bytes, kind: str = "image/jpeg") -> bytes:
    """A whole request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: {kind}\r\n\r\n"
    )
    return head.encode() + body


def multipart(path: str, files: Sequence[tuple[str, bytes]]) -> bytes:
    """A whole request with files in fields of a form."""
    mark = "b0undary"
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{field}"; filename="{field}.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n".encode()
        + content
        + b"\r\n"
        for field, content in files
    ]
    body = b"".join(parts) + f"--{mark}--\r\n".encode()
    return raw(path, body, f"multipart/form-data; boundary={mark}")


class Client:
    """A connection that is kept, and opened again when it breaks."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._place = parts.hostname, parts.port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, float]:
        """Status and the seconds to wait before the next request."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._place)
            reader, writer = self._streams
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            await reader.readexactly(int(headers["content-length"]))
            if headers.get("connection") == "close":
                self.close()
            return int(head.split(" ", 2)[1]), float(headers.get("retry-after", 0))
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0, 0.05

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


class _Load:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.requests = [Path(file).read_bytes() for file in plan.requests]
        self.statuses: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.sent = 0

    async def one(self, client: Client) -> float:
        request = self.requests[self.sent % len(self.requests)]
        self.sent += 1
        started = time.perf_counter()
        status, pause = await client.ask(request)
        self.statuses[str(status)] += 1
        if status == 200:
            self.latencies.append(time.perf_counter() - started)
        return pause

    async def closed(self) -> None:
        end = time.perf_counter() + self.plan.seconds

        async def client() -> None:
            connection = Client(self.plan.address)
            while (left := end - time.perf_counter()) > 0:
                await asyncio.sleep(min(await self.one(connection), left))
            connection.close()

        await asyncio.gather(*(client() for _ in range(self.plan.clients)))

    async def open(self) -> None:
        idle: list[Client] = []
        running: set[asyncio.Task[None]] = set()

        async def one() -> None:
            client = idle.pop() if idle else Client(self.plan.address)
            await self.one(client)
            idle.append(client)

        started = time.perf_counter()
        for number in range(int(self.plan.rate * self.plan.seconds)):
            await asyncio.sleep(started + number / self.plan.rate - time.perf_counter())
            if len(running) >= MOST_CONNECTIONS:
                self.statuses["unsent"] += 1
                continue
            task = asyncio.create_task(one())
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        for client in idle:
            client.close()


async def _run(plan: Plan) -> Outcome:
    load = _Load(plan)
    started = time.perf_counter()
    await (load.open() if plan.rate else load.closed())
    seconds = time.perf_counter() - started
    return Outcome(dict(load.statuses), sorted(load.latencies), seconds)


def main() -> None:
    """Run the plan of standard input."""
    print(json.dumps(asdict(uvloop.run(_run(Plan(**json.load(sys.stdin)))))))


if __name__ == "__main__":
    main()
