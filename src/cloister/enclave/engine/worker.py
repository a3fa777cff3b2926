"""The worker process: llama.cpp and nothing else. Started by the supervisor with one end of a socket pair.

    python -I -m cloister.enclave.engine.worker FD

Its standard streams are closed before it starts, its environment is empty, its model comes as an open file, and its
prompts and answers only ever pass through the socket. llama.cpp always starts an HTTP server: here it listens on a
socket in a private folder that is unlinked at once, behind a random key.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable

from cloister.enclave.engine import translate
from cloister.enclave.engine.pipe import Kind, Unpacker, pack
from cloister.enclave.hardening import die_with_parent, leave_no_dump


def _harden() -> None:
    """Die with the supervisor; leave no core dump; leave signals for the whole process group to the supervisor."""
    die_with_parent()
    leave_no_dump()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Worker:
    """One loaded model and the requests that run on it, each in a thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._cancelled: dict[int, threading.Event] = {}
        self._model_id = ""

    def run(self) -> None:
        """Serve until told to stop or until the supervisor is gone; never returns normally.

        llama.cpp aborts when Python exits under a running stream, so the process is ended without that.
        """
        unpacker = Unpacker()
        while data := self._connection.recv(1 << 16):
            for kind, request, payload in unpacker.push(data):
                if kind is Kind.CONFIG:
                    self._load(json.loads(payload))
                elif kind is Kind.REQUEST:
                    cancelled = self._cancelled[request] = threading.Event()
                    threading.Thread(target=self._answer, args=(request, payload, cancelled), daemon=True).start()
                elif kind is Kind.CANCEL:
                    if (event := self._cancelled.get(request)) is not None:
                        event.set()
                elif kind is Kind.PING:
                    self._send(Kind.PONG)
                elif kind is Kind.STOP:
                    os._exit(0)
        os._exit(0)

    def _send(self, kind: Kind, request: int = 0, payload: bytes = b"") -> None:
        with self._send_lock:
            self._connection.sendall(pack(kind, request, payload))

    def _load(self, config: dict[str, int | str]) -> None:
        # Imported here: it takes a while and holds the GIL.
        import xllamacpp

        from cloister.enclave.engine.params import llama_params

        folder = tempfile.mkdtemp(prefix="cloister-")
        try:
            params = llama_params(config, f"/proc/self/fd/{config['model_fd']}")
            # The ending is how llama.cpp tells a socket from a host name.
            params.hostnames = [f"{folder}/x.sock"]
            params.api_keys = [secrets.token_hex(32)]
            self._server = xllamacpp.Server(params)
            loaded = True
        except (RuntimeError, ValueError):
            loaded = False
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if not loaded:
            self._send(Kind.FAILED)
            os._exit(1)
        self._model_id = str(config["model_id"])
        self._send(Kind.READY)

    def _answer(self, request: int, payload: bytes, cancelled: threading.Event) -> None:
        message = json.loads(payload)
        error: dict[str, object] | None = None
        try:
            error = self._run(message["kind"], message["fields"], request, cancelled)
        except (ValueError, RuntimeError, UnicodeError, KeyError, AssertionError):
            error = {}
        finally:
            del self._cancelled[request]
        if error is None:
            self._send(Kind.DONE, request)
        else:
            refused = translate.refusal(error)
            self._send(
                Kind.ERROR,
                request,
                json.dumps(
                    {name: getattr(refused, name) for name in ("message", "status", "code", "kind", "param")}
                ).encode(),
            )

    def _run(
        self, kind: str, fields: dict[str, object], request: int, cancelled: threading.Event
    ) -> dict[str, object] | None:
        """Run one request; returns llama.cpp's error object if it made one."""
        if kind == "embedding":
            answer = self._server.handle_embeddings(fields)
            if "error" in answer:
                return dict(answer["error"])
            self._send_chunk(request, translate.clean_embeddings(answer, self._model_id))
            return None
        failed: list[dict[str, object]] = []

        def on_chunk(raw: bytes) -> bool:
            # Whatever is true ends the stream and frees the slot.
            if cancelled.is_set():
                return True
            chunk = json.loads(raw)
            for part in chunk if isinstance(chunk, list) else [chunk]:
                if "error" in part:
                    failed.append(dict(part["error"]))
                    return True
                if (clean := translate.clean_chunk(part, self._model_id)) is not None:
                    self._send_chunk(request, clean)
            return False

        call: Callable[[bytes, Callable[[bytes], bool]], None] = (
            self._server.handle_chat_completions if kind == "chat" else self._server.handle_completions
        )
        call(json.dumps(fields).encode(), on_chunk)
        return failed[0] if failed else None

    def _send_chunk(self, request: int, chunk: dict[str, object]) -> None:
        self._send(Kind.CHUNK, request, json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode())


def main() -> None:
    """Entry of the process."""
    _harden()
    Worker(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
