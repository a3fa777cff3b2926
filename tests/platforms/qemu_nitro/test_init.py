"""The image's first process in real virtual machines: what it starts, and what it refuses to start."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from cloister.image import build, eif, toolchain
from cloister.image.tree import Tree, cpio, manifest
from cloister.platforms.qemu_nitro import lab, qemu
from cloister.wire.ports import HEARTBEAT

pytestmark = [
    pytest.mark.skipif(not lab.ready(), reason="the lab is not prepared (make lab): no virtual machine is booted"),
    pytest.mark.timeout(180),
]
SECONDS = 60


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="clo-") as name:
        yield Path(name)


def root() -> Tree:
    tree = Tree()
    for name in ("dev", "proc", "sys", "run", "tmp"):
        tree.directory(name)
    tree.file("bin/one", b"first\n" * 1000)
    tree.file("lib/empty", b"")
    tree.file("lib/block", bytes(range(64)))
    tree.file("lib/almost", bytes(range(55)))
    tree.file("lib/over", bytes(range(56)))
    tree.link("lib/link", "block")
    return tree


def ramdisks(tree: Tree, listed: bytes) -> bytes:
    """The two ramdisks of an image whose command is a file that cannot be run: a test sees how far init came."""
    boot, application = Tree(), Tree()
    boot.directory("dev")
    boot.file("init", toolchain.INIT.make().read_bytes(), 0o755)
    for name, entry in tree:
        application.put(f"rootfs/{name}", entry)
    application.file("manifest", listed)
    application.file("cmd", b"/bin/one\n")
    application.file("env", build.ENVIRONMENT)
    return cpio(boot) + zstandard.compress(cpio(application))


def boot(
    folder: Path, initrd: bytes, *, memory_mib: int = 256, cmdline: str = build.CMDLINE, answer: bytes | None = b"\xb7"
) -> str:
    """The console of a machine that ended by itself."""
    kernel = toolchain.KERNEL.make()
    (folder / "initrd").write_bytes(initrd)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/v_{HEARTBEAT}")
    listener.listen()

    def beat() -> None:
        try:
            stream, _ = listener.accept()
        except OSError:
            return
        with stream:
            assert stream.recv(1) == b"\xb7"
            if answer is not None:
                stream.sendall(answer)

    thread = threading.Thread(target=beat)
    thread.start()
    words = ["--socket", f"{folder}/d", "--uds-path", f"{folder}/v", "--guest-cid", "16"]
    module = "cloister.platforms.qemu_nitro.vsock_device"
    with subprocess.Popen([sys.executable, "-m", module, *words], stdout=subprocess.PIPE, text=True) as device:
        try:
            assert device.stdout is not None
            assert device.stdout.readline() == "ready\n"
            guest = qemu.Guest.start(
                lab.qemu(),
                qemu.Machine(
                    kernel=kernel, initrd=folder / "initrd", cmdline=cmdline, memory_mib=memory_mib,
                    vsock_socket=folder / "d", console=folder / "console",
                ),
            )  # fmt: skip
            ended = guest.wait(SECONDS)
            if ended is None:
                guest.stop()
        finally:
            device.terminate()
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()
    console = (folder / "console").read_text(errors="replace")
    assert ended is not None, console[-1500:]
    return console


def test_a_whole_tree_is_started(folder: Path) -> None:
    tree = root()
    console = boot(folder, ramdisks(tree, manifest(tree)))
    assert f"init: {len(tree.entries)} files as built" in console
    # The command is no program: init came as far as to run it.
    assert "init: stopped: cannot run: /bin/one" in console


def _zeros(tree: Tree) -> None:
    tree.file("bin/one", bytes(6000))


def _shorter(tree: Tree) -> None:
    tree.file("bin/one", (b"first\n" * 1000)[:-1])


def _other_link(tree: Tree) -> None:
    tree.link("lib/link", "over")


def _file_for_link(tree: Tree) -> None:
    tree.file("lib/link", b"block")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_zeros, "damaged (is there too little memory?): /rootfs/bin/one"),
        (_shorter, "damaged (is there too little memory?): /rootfs/bin/one"),
        (lambda tree: tree.remove("lib/empty"), "missing: /rootfs/lib/empty"),
        (lambda tree: tree.remove("tmp"), "missing: /rootfs/tmp"),
        (_other_link, "damaged: /rootfs/lib/link"),
        (_file_for_link, "missing: /rootfs/lib/link"),
    ],
)
def test_a_changed_tree_is_not_started(folder: Path, change, words: str) -> None:
    tree = root()
    listed = manifest(tree)
    change(tree)
    console = boot(folder, ramdisks(tree, listed))
    assert f"init: stopped: {words}" in console
    assert "cannot run" not in console


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_cut_manifest_is_no_short_one(folder: Path, cut: int) -> None:
    tree = root()
    lines = manifest(tree).splitlines(keepends=True)
    short = {0: b"".join(lines[:-1]), 1: b"".join(lines[1:]), 2: manifest(tree)[:-1]}[cut]
    console = boot(folder, ramdisks(tree, short))
    assert "init: stopped: the manifest is" in console


def test_a_parent_that_does_not_answer_the_heartbeat(folder: Path) -> None:
    tree = root()
    console = boot(folder, ramdisks(tree, manifest(tree)), answer=b"\x00")
    assert "init: stopped: the parent answered the heartbeat wrongly" in console


def test_too_little_memory_is_found(folder: Path) -> None:
    """A tmpfs of half the memory: the kernel says "write error" and goes on; lengths and registers would be right."""
    tree = root()
    pattern = bytes(range(1, 256)) * 65536
    for number in range(10):
        tree.file(f"lib/large{number}", pattern)
    cmdline = build.CMDLINE.replace("rootfstype=ramfs", "rootfstype=tmpfs")
    console = boot(folder, ramdisks(tree, manifest(tree)), cmdline=cmdline)
    assert "Initramfs unpacking failed" in console
    assert "init: stopped: " in console
    assert "files as built" not in console


def test_an_image_file_gives_the_same_registers_as_it_was_measured_with() -> None:
    image = eif.Image(kernel=b"k", cmdline=b"c", ramdisks=(b"a", b"b"))
    assert eif.parse(eif.write(image)).measurements() == image.measurements()
