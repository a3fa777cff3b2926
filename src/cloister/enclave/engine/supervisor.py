"""Keeps one worker process running and carries requests to it; implements protocol.Engine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from importlib.metadata import version

from cloister.api.errors import OVERLOADED
from cloister.api.requests import CompletionRequest, EmbeddingRequest, Generation, Sampling
from cloister.enclave.engine import gguf, translate
from cloister.enclave.engine.config import EngineConfig, ResolvedConfig
from cloister.enclave.engine.pipe import Kind, Unpacker, pack
from cloister.enclave.engine.protocol import EngineInfo, OnProgress, Progress, State
from cloister.errors import ApiError, EngineCrashed, EngineError, ModelLoadError

log = logging.getLogger(__name__)

#: Seconds a worker may take to load a model, or to answer a ping once it has.
LOAD_TIMEOUT = 600.0
PING_EVERY, PING_TIMEOUT = 5.0, 30.0
#: Waits before the first, second, ... restart in a row; after the last the engine has failed.
BACKOFF = (0.0, 0.5, 2.0, 5.0, 15.0)
#: Seconds that a worker gets to end by itself.
STOP_PATIENCE = 2.0
#: How long a request waits for a worker that is being restarted.
RESTART_PATIENCE = 60.0


@dataclass(eq=False)
class _Flow:
    """One request's answer on its way from the reader to whoever asked."""

    chunks: list[bytes] = field(default_factory=list)
    ended: bool = False
    error: EngineError | ApiError | None = None
    waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def batch(self) -> list[bytes] | None:
        """The chunks that have come, waiting for one; None at the end; raises the request's error."""
        while not self.chunks and not self.ended:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        if self.chunks:
            chunks, self.chunks = self.chunks, []
            return chunks
        if self.error is not None:
            raise self.error
        return None


class LlamaEngine:
    """llama.cpp in a supervised worker process."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._state: State = "stopped"
        self._info: EngineInfo | None = None
        self._resolved: ResolvedConfig | None = None
        self._model_fd = -1
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._flows: dict[int, _Flow] = {}
        self._next_request = 0
        self._ready = asyncio.Event()
        self._loaded: asyncio.Future[None] | None = None
        self._slots = asyncio.Semaphore(config.slots)
        self._waiting = 0
        self._pong = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._first_error: asyncio.Future[None] | None = None
        #: How often a worker that had ended was followed by another.
        self.restarts = 0

    @property
    def state(self) -> State:
        """Where the engine is in its life."""
        return self._state

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        if self._info is None:
            raise EngineError("the engine was not started")
        return self._info

    @property
    def pid(self) -> int | None:
        """The worker's process id."""
        return self._process.pid if self._process is not None else None

    async def start(self, on_progress: OnProgress | None = None) -> None:
        """Hash and check the file, start the worker, load, answer one token; raises ModelLoadError."""
        report = on_progress or (lambda _progress: None)
        self._state = "starting"
        try:
            await self._identify(report)
            report(Progress(stage="loading"))
            self._first_error = asyncio.get_running_loop().create_future()
            self._keeper = asyncio.create_task(self._keep())
            done, _ = await asyncio.wait(
                (asyncio.ensure_future(self._ready.wait()), self._first_error), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            report(Progress(stage="warming"))
            await self.call(
                CompletionRequest(
                    model=None, prompt="a", sampling=Sampling(max_tokens=1), stream=False, include_usage=False
                )
            )
        except BaseException:
            await self.stop()
            self._state = "failed"
            raise

    async def _identify(self, report: OnProgress) -> None:
        """Open the file once: what is hashed is what is loaded, whatever happens to its name meanwhile."""
        try:
            self._model_fd = os.open(self._config.model, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ModelLoadError(f"cannot open the model file: {error.strerror}") from None
        size = os.fstat(self._model_fd).st_size

        def read() -> tuple[gguf.Header, str]:
            with os.fdopen(os.dup(self._model_fd), "rb") as file:
                header = gguf.read_header(file, size)
                if self._config.model_sha256 is not None:
                    return header, self._config.model_sha256
                file.seek(0)
                digest, done = hashlib.sha256(), 0
                while piece := file.read(8 << 20):
                    digest.update(piece)
                    done += len(piece)
                    loop.call_soon_threadsafe(report, Progress(stage="hashing", done=done / max(1, size)))
            return header, digest.hexdigest()

        loop = asyncio.get_running_loop()
        header, sha256 = await asyncio.to_thread(read)
        self._resolved = resolved = self._config.resolve(header)
        self._info = EngineInfo(
            model_id=resolved.model_id,
            model_sha256=sha256,
            architecture=header.architecture,
            parameters=header.parameters,
            context=resolved.context,
            slots=resolved.slots,
            engine=f"xllamacpp {version('xllamacpp')}",
        )

    @property
    def resolved(self) -> ResolvedConfig:
        """The configuration with nothing left open; only after `start`."""
        assert self._resolved is not None
        return self._resolved

    async def stop(self) -> None:
        """End every request and the worker."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if self._model_fd >= 0:
            os.close(self._model_fd)
            self._model_fd = -1
        self._state = "stopped"

    # --- Requests -----------------------------------------------------------------------------------------------------

    async def stream(self, request: Generation) -> AsyncGenerator[list[bytes], None]:
        """Chunk objects in batches as they come, usage last; closing the iterator frees the slot."""
        async with contextlib.aclosing(self._run(request)) as batches:
            async for batch in batches:
                yield batch

    async def call(self, request: Generation | EmbeddingRequest) -> bytes:
        """The whole answer; cancelling the task frees the slot."""
        chunks: list[bytes] = []
        async with contextlib.aclosing(self._run(request)) as batches:
            async for batch in batches:
                chunks += batch
        return chunks[0] if isinstance(request, EmbeddingRequest) else translate.assemble(chunks)

    async def _run(self, request: Generation | EmbeddingRequest) -> AsyncGenerator[list[bytes], None]:
        kind, fields = translate.to_llama(request)
        async with self._admitted():
            if self._state != "ready":
                await self._wait_ready()
            self._next_request = number = (self._next_request + 1) & 0xFFFFFFFF
            flow = self._flows[number] = _Flow()
            self._send(Kind.REQUEST, number, json.dumps({"kind": kind, "fields": fields}).encode())
            try:
                while (batch := await flow.batch()) is not None:
                    yield batch
            finally:
                if not flow.ended:
                    self._send(Kind.CANCEL, number)
                    # The slot is only free for the next request once the worker says so.
                    with contextlib.suppress(EngineError, ApiError, asyncio.CancelledError):
                        await asyncio.shield(self._drained(flow))
                self._flows.pop(number, None)

    @contextlib.asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        """A slot, or ApiError 429 when too many already wait for one."""
        if self._slots.locked() and self._waiting >= self._config.queue:
            raise ApiError(OVERLOADED, status=429, kind="rate_limit_error", code="overloaded")
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def _wait_ready(self) -> None:
        if self._state not in ("starting", "restarting"):
            raise EngineError("the inference engine is not running")
        try:
            async with asyncio.timeout(RESTART_PATIENCE):
                await self._ready.wait()
        except TimeoutError:
            raise EngineCrashed("the inference engine is still being restarted") from None

    @staticmethod
    async def _drained(flow: _Flow) -> None:
        while await flow.batch() is not None:
            pass

    def _send(self, kind: Kind, request: int = 0, payload: bytes = b"") -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack(kind, request, payload))

    # --- The worker's life --------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Run workers one after the other until cancelled or until they fail too often in a row."""
        failures = 0
        while True:
            try:
                healthy = await self._one_life()
            except ModelLoadError as error:
                self._fail(error)
                return
            finally:
                self._ready.clear()
            failures = 1 if healthy else failures + 1
            if failures >= len(BACKOFF):
                self._fail(EngineError("the inference engine ended too often in a row"))
                return
            self._state = "restarting"
            self.restarts += 1
            log.warning("the inference worker ended; starting another")
            await asyncio.sleep(BACKOFF[failures - 1])

    def _fail(self, error: EngineError) -> None:
        self._state = "failed"
        if self._first_error is not None and not self._first_error.done():
            self._first_error.set_exception(error)
        log.error("the inference engine has failed: %s", error.message)

    async def _one_life(self) -> bool:
        """One worker from start to end; returns whether it ever became ready."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-m", "cloister.enclave.engine.worker", str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._model_fd),
                # Variables such as LLAMA_SERVER_SLOTS_DEBUG or AIP_HTTP_PORT would change what llama.cpp reveals.
                env={"LANG": "C.UTF-8", "OMP_WAIT_POLICY": "passive"},
            )  # fmt: skip
        reader, self._writer = await asyncio.open_connection(sock=ours)
        resolved = self.resolved
        config = {
            name: getattr(resolved, name) for name in ("model_id", "context", "slots", "threads", "batch", "one_copy")
        }
        self._send(Kind.CONFIG, 0, json.dumps({**config, "model_fd": self._model_fd}).encode())
        watchdog = asyncio.create_task(self._watch())
        was_ready = False
        try:
            unpacker = Unpacker()
            while data := await reader.read(1 << 18):
                for kind, request, payload in unpacker.push(data):
                    if kind is Kind.FAILED:
                        raise ModelLoadError("llama.cpp cannot load the model file")
                    if kind is Kind.READY:
                        was_ready = True
                        self._state = "ready"
                        self._ready.set()
                    elif kind is Kind.PONG:
                        self._pong.set()
                    else:
                        self._deliver(kind, request, payload)
        except (ConnectionError, EngineError) as error:
            if isinstance(error, ModelLoadError):
                raise
        finally:
            watchdog.cancel()
            self._send(Kind.STOP)
            self._writer.close()
            self._writer = None
            await asyncio.shield(self._end(self._process))
            for flow in self._flows.values():
                flow.error = EngineCrashed("the inference engine stopped while answering")
                flow.ended = True
                flow.wake()
        return was_ready

    @staticmethod
    async def _end(process: asyncio.subprocess.Process) -> None:
        """Let a worker that was told to stop end by itself; kill one that does not."""
        try:
            async with asyncio.timeout(STOP_PATIENCE):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _deliver(self, kind: Kind, request: int, payload: bytes) -> None:
        flow = self._flows.get(request)
        if flow is None:
            return
        if kind is Kind.CHUNK:
            flow.chunks.append(payload)
        else:
            if kind is Kind.ERROR:
                flow.error = ApiError(**json.loads(payload))
            flow.ended = True
        flow.wake()

    async def _watch(self) -> None:
        """Kill a worker that does not load in time, or that stops answering."""
        assert self._process is not None
        try:
            async with asyncio.timeout(LOAD_TIMEOUT):
                await self._ready.wait()
            while True:
                await asyncio.sleep(PING_EVERY)
                self._pong.clear()
                self._send(Kind.PING)
                async with asyncio.timeout(PING_TIMEOUT):
                    await self._pong.wait()
        except TimeoutError:
            log.warning("the inference worker does not answer and is killed")
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
