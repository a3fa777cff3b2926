"""Keeps a parent's doors and its enclave up: starts both, looks whether they live and answer, starts them again.

    python -m cloister.host.supervise --config host.toml

The agent is a child process, so that its end takes nothing else with it; clients' listening socket is held here and
outlives it. The enclave is a command of the configuration: nitro-cli, or a platform of this package. The first line on
standard output is `listening HOST PORT`. SIGTERM drains: no new clients, streams in progress end, then the enclave.
Too many starts in too short a time end the supervisor with the status of UndecidedError.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from cloister.errors import CloisterError, UndecidedError, UsageError
from cloister.host.agent import ingress
from cloister.host.config import AgentConfig, EnclaveConfig
from cloister.host.log import Log
from cloister.host.vsock import Vsock, chosen
from cloister.wire import ports

State = Literal["starting", "running", "draining", "stopped", "failed"]
Reason = Literal["none", "ended", "silent", "no_start", "no_answer", "agent_ended"]

SCHEMA = "cloister-supervisor/1"
#: Waits before the first, second, ... start again within the window.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
#: Between two looks while the enclave boots.
BOOT_LOOK_SECONDS = 0.25
#: For a command to end before it is killed.
END_SECONDS = 10.0
REPORT_SECONDS = 60.0
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: enclave\r\nConnection: close\r\n\r\n"
HEALTHY = b"HTTP/1.1 200 "


async def answers(vsock: Vsock, seconds: float) -> bool:
    """Does the gateway answer its health route with 200 in that time?"""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            stream = await vsock.connect(ports.GATEWAY)
            with stream:
                await loop.sock_sendall(stream, HEALTH)
                got = b""
                while len(got) < len(HEALTHY) and (piece := await loop.sock_recv(stream, len(HEALTHY) - len(got))):
                    got += piece
                return got == HEALTHY
    except (OSError, TimeoutError):
        return False


class Budget:
    """Starts again in a window of time: longer waits, then none."""

    def __init__(self, restarts: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._restarts, self._seconds, self._clock = restarts, seconds, clock
        self._at: deque[float] = deque()

    def spend(self) -> float:
        """Seconds to wait before the next start; raises UndecidedError when there were too many."""
        now = self._clock()
        while self._at and now - self._at[0] > self._seconds:
            self._at.popleft()
        if len(self._at) >= self._restarts:
            raise UndecidedError(
                f"{len(self._at)} starts within {self._seconds:.0f} s, and it does not stay up",
                hint="See the log for the reason; the supervisor does not try again.",
            )
        self._at.append(now)
        return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (len(self._at) - 1)))


class Supervisor:
    """One agent and one enclave; `run` until `end` is called."""

    def __init__(self, path: Path, config: AgentConfig, enclave: EnclaveConfig) -> None:
        self._path, self._config, self._enclave = path, config, enclave
        self._vsock = chosen(config.cid, config.uds)
        self._log = Log(config.name, _beside(config.log), size=config.log_bytes, files=config.log_files)
        self._stop = asyncio.Event()
        self._agent_pid: int | None = None
        self.state: State = "starting"
        #: Why something was last started again; `none` while all runs.
        self._reason: Reason = "none"
        self.restarts = 0

    def end(self) -> None:
        """Drain, then stop."""
        self._stop.set()

    async def run(self) -> None:
        """Raises UndecidedError when something does not stay up, UsageError when it cannot start at all."""
        try:
            listener = ingress(self._config.listen)
        except OSError as error:
            raise UsageError(f"cannot listen: {error.strerror}", hint="Is another agent running?") from None
        self._tell("starting")
        doors = asyncio.Event()
        agent = asyncio.create_task(self._keep_agent(listener, doors))
        enclave = asyncio.create_task(self._keep_enclave(doors))
        others = [asyncio.create_task(self._stop.wait()), asyncio.create_task(self._report())]
        ended: State = "failed"
        try:
            done, _ = await asyncio.wait((agent, enclave, *others), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            ended = "stopped"
            self._tell("draining")
        finally:
            # As long as anybody holds it open, the kernel goes on accepting clients.
            listener.close()
            for task in others:
                task.cancel()
            # The agent first: streams in progress need the enclave.
            await _cancelled(agent)
            await _cancelled(enclave)
            self._tell(ended)
            self._log.close()

    # The agent

    async def _keep_agent(self, listener: socket.socket, doors: asyncio.Event) -> None:
        budget = Budget(self._enclave.restarts, self._enclave.window_seconds)
        while True:
            await self._one_agent(listener, doors)
            await self._again("agent_ended", budget)

    async def _one_agent(self, listener: socket.socket, doors: asyncio.Event) -> None:
        """From the start to the end of one; a cancellation drains it."""
        number = listener.fileno()
        words = [sys.executable, "-m", "cloister.host.agent", "--config", str(self._path), "--listener", str(number)]
        agent = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, pass_fds=(number,)
        )
        assert agent.stdout is not None
        self._agent_pid = agent.pid
        try:
            line = await agent.stdout.readline()
            if line and not doors.is_set():
                _say(line)
            if line:
                doors.set()
                self._write_status()
            # Its log, where that is standard output.
            while line := await agent.stdout.readline():
                _say(line)
            await agent.wait()
        finally:
            await asyncio.shield(_ended(agent, self._config.drain_seconds + END_SECONDS))
            self._agent_pid = None

    # The enclave

    async def _keep_enclave(self, doors: asyncio.Event) -> None:
        # Its first words are for the parent's doors.
        await doors.wait()
        budget = Budget(self._enclave.restarts, self._enclave.window_seconds)
        adopt = await answers(self._vsock, self._enclave.answer_seconds)
        if adopt and not self._enclave.stop:
            raise UsageError(
                "an enclave answers already, and nothing here could end it", hint="End it, or give a command to `stop`."
            )
        while True:
            reason = await self._one_enclave(adopt)
            adopt = False
            await self._again(reason, budget)

    async def _one_enclave(self, adopt: bool) -> Reason:
        """From the start to the end of one, and why it ended."""
        settings, process = self._enclave, None
        try:
            if not adopt:
                process = await _start(settings.start)
                if settings.stop:
                    async with asyncio.timeout(settings.boot_seconds):
                        if await process.wait():
                            return "no_start"
                    process = None
            limit = time.monotonic() + settings.boot_seconds
            while not await answers(self._vsock, settings.answer_seconds):
                if process is not None and process.returncode is not None:
                    return "ended"
                if time.monotonic() > limit:
                    return "no_answer"
                await _or_end(process, BOOT_LOOK_SECONDS)
            self._reason = "none"
            self._tell("running")
            misses = 0
            while misses < settings.misses:
                if await _or_end(process, settings.check_seconds):
                    return "ended"
                misses = 0 if await answers(self._vsock, settings.answer_seconds) else misses + 1
            return "silent"
        except TimeoutError:
            return "no_start"
        finally:
            await asyncio.shield(self._end_enclave(process))

    async def _end_enclave(self, process: asyncio.subprocess.Process | None) -> None:
        if process is not None:
            await _ended(process, END_SECONDS, group=True)
        if self._enclave.stop:
            command = await _start(self._enclave.stop)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await command.wait()
            await _ended(command, 0, group=True)

    async def _again(self, reason: Reason, budget: Budget) -> None:
        self._reason = reason
        self._tell("starting" if reason != "agent_ended" else self.state)
        wait = budget.spend()
        self.restarts += 1
        self._write_status()
        await asyncio.sleep(wait)

    # What others see

    def _tell(self, state: State) -> None:
        self.state = state
        self._log.write(f"supervisor_{state}", {"reason": self._reason}, {"supervisor_changes": (1, "Count")})
        self._write_status()

    async def _report(self) -> None:
        told = 0
        while True:
            up = float(self.state == "running")
            again = float(self.restarts - told)
            told = self.restarts
            self._log.write("supervisor", metrics={"enclave_up": (up, "Count"), "restarts": (again, "Count")})
            await asyncio.sleep(REPORT_SECONDS)

    def _write_status(self) -> None:
        path = self._enclave.status
        if path is None:
            return
        document = {
            "schema": SCHEMA,
            "name": self._config.name,
            "state": self.state,
            "reason": self._reason,
            "since": int(time.time()),
            "restarts": self.restarts,
            "pid": os.getpid(),
            "agent_pid": self._agent_pid,
        }
        new = path.with_name(f"{path.name}.new")
        with contextlib.suppress(OSError):
            new.write_text(json.dumps(document) + "\n")
            new.replace(path)


def _beside(log: str) -> str:
    """A file of its own: two processes cannot rotate one."""
    if log in ("stderr", "stdout"):
        return log
    path = Path(log)
    return str(path.with_name(f"{path.stem}.supervisor{path.suffix}"))


async def _start(words: tuple[str, ...]) -> asyncio.subprocess.Process:
    """A command in a process group of its own. What it prints is not ours to keep: it may be a console."""
    try:
        return await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, start_new_session=True
        )
    except OSError as error:
        raise UsageError(
            f"cannot run {words[0]}: {error.strerror}", hint="See [enclave] in the configuration."
        ) from None


async def _or_end(process: asyncio.subprocess.Process | None, seconds: float) -> bool:
    """Wait so long, or until the process has ended; says which."""
    if process is None:
        await asyncio.sleep(seconds)
        return False
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
    except TimeoutError:
        return False
    return True


async def _ended(process: asyncio.subprocess.Process, seconds: float, *, group: bool = False) -> None:
    """Ask it to end, wait so long, kill it; with `group`, all that it started too."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds if number == signal.SIGTERM else None):
                await process.wait()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


async def _run(path: Path, config: AgentConfig, enclave: EnclaveConfig) -> None:
    supervisor = Supervisor(path, config, enclave)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, supervisor.end)
    await supervisor.run()


def main(arguments: list[str] | None = None) -> int:
    """The supervisor as a process of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m cloister.host.supervise", description="Keeps agent and enclave up."
    )
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        config = AgentConfig.load(options.config)
        if config.enclave is None:
            raise UsageError("the configuration has no [enclave] table", hint="See docs/parent.md.")
        enclave = config.enclave
        if enclave.status is not None:
            enclave = replace(enclave, status=enclave.status.absolute())
        try:
            asyncio.run(_run(options.config.absolute(), config, enclave))
        except OSError as error:
            raise UsageError(f"the supervisor cannot start: {error.strerror}") from None
    except CloisterError as error:
        print(f"{error.message}. {error.hint}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
