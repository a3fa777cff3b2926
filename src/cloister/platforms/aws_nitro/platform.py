"""Implements platforms.platform.Platform with nitro-cli on an EC2 instance. Never run on real Nitro hardware yet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cloister.errors import CloisterError, UndecidedError, UsageError
from cloister.image import eif
from cloister.image.built import Built
from cloister.image.config import ImageConfig, KmsSettings
from cloister.platforms.aws_nitro import parent, rules
from cloister.platforms.aws_nitro.nitro_cli import Described, NitroCli
from cloister.platforms.platform import Launch, Running
from cloister.platforms.state import folder

#: The first that nitro-cli itself gives away.
USUAL_CID = 16


class AwsNitro:
    """Enclaves of this instance; nitro-cli is asked each time, nothing about them is remembered."""

    name = "aws-nitro"
    simulated = False

    def settle(self, launch: Launch) -> Launch:
        """Choose the lowest free context identifier, so that the parent agent can start before the enclave."""
        if launch.cid is not None:
            return launch
        taken: set[int] = set()
        # Why nitro-cli does not answer is told by preflight, with everything else that is wrong.
        with contextlib.suppress(CloisterError):
            taken = {each.running.cid for each in NitroCli().describe()}
        return replace(launch, cid=next(cid for cid in range(USUAL_CID, rules.ANY_CID) if cid not in taken))

    def preflight(self, launch: Launch) -> None:
        """Raises UsageError that names every rule of `rules.RULES` that the launch breaks."""
        try:
            data = launch.image.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {launch.image}: {error.strerror}") from None
        plan = rules.Plan(
            launch=launch,
            image=eif.parse(data),
            image_bytes=len(data),
            parent=parent.look(NitroCli()),
            cid=launch.cid if launch.cid is not None else USUAL_CID,
            now=rules.now(),
        )
        if found := rules.broken(plan):
            lines = "".join(f"\n  {name}: {said}" for name, said in found.items())
            raise UsageError(f"{len(found)} rule(s) of Nitro Enclaves are broken:{lines}", hint="Nothing was started.")

    def reach(self, launch: Launch) -> Mapping[str, object]:
        """The enclave's context identifier; nitro-cli answers the heartbeat itself."""
        assert launch.cid is not None
        return {"cid": launch.cid}

    def release(self, config: ImageConfig, built: Built, project: Path) -> Mapping[str, object]:
        """The instance role's credentials for AWS KMS; the key's policy is its owner's business (docs/nitro.md)."""
        del built, project
        return {"credentials": "instance"} if isinstance(config.release, KmsSettings) else {}

    def start(self, launch: Launch) -> Running:
        """`nitro-cli run-enclave`; ends what it started under another name than the one asked for."""
        assert launch.cid is not None
        home = folder(launch.name)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        cli = self._cli(launch.name)
        running = cli.run(launch, launch.cid)
        # nitro-cli gives another name where one is taken, and nobody would find the enclave under it.
        if running.cid != launch.cid or running.name != launch.name:
            cli.terminate(running.id)
            raise UndecidedError("nitro-cli started the enclave under another cid or name", hint="cloister status")
        return running

    def list(self) -> tuple[Running, ...]:
        """Every enclave of this instance, those that others started too."""
        cli = NitroCli()
        return tuple(each.running for each in cli.describe()) if cli.present() else ()

    def find(self, name: str) -> Running | None:
        """The enclave of that name, if there is one."""
        found = self._described(name)
        return found.running if found is not None else None

    def console(self, name: str) -> Iterator[str]:
        """Console lines of an enclave in debug mode; raises UsageError for every other."""
        found = self._described(name)
        if found is None:
            raise UsageError(f"there is no enclave {name}", hint="cloister status lists them.")
        if not found.debug:
            raise UsageError(
                f"{name} has no console", hint="Nitro shows one in debug mode only, where nothing is confidential."
            )
        yield from self._cli(name).console(found.running.id).splitlines()

    def stop(self, name: str) -> None:
        """`nitro-cli terminate-enclave`; no error when it is gone already."""
        found = self._described(name)
        if found is not None:
            self._cli(name).terminate(found.running.id)

    def root_pem(self) -> None:
        """No simulated root: only AWS's own is trusted."""
        return

    def _described(self, name: str) -> Described | None:
        cli = self._cli(name)
        every = cli.describe() if cli.present() else ()
        return next((each for each in every if each.running.name == name), None)

    @staticmethod
    def _cli(name: str) -> NitroCli:
        home = folder(name)
        return NitroCli(home / "nitro-cli.log" if home.is_dir() else None)
