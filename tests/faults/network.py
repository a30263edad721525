"""Services that can be cut off from Kafka: each in a network namespace of its own, at the end of a cable."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Self

HOME = "10.213.0.1"
"""This machine's address, under which the brokers are reached from every namespace."""
_NAME = "portcullis"


def can_cut() -> bool:
    """Whether this user may make network namespaces on this machine."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Cables:
    """`with Cables(["prada"]) as cables:` one namespace and one cable for each name.

    A cable that is cut loses what is on it without a word, as a broken switch does: connections hang, they are not
    refused.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """
        Args:
            names: of the services.
        """
        self._numbers = {name: number for number, name in enumerate(names, 1)}

    def __enter__(self) -> Self:
        self._remove()  # of a run that was killed
        try:
            _ip("address", "add", f"{HOME}/32", "dev", "lo")
            for name in self._numbers:
                self._lay(name)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._remove()

    def host(self, name: str) -> str:
        """The address at which a service is reached."""
        return f"10.213.{self._numbers[name]}.2"

    def hosts(self) -> dict[str, str]:
        """The same of all, by name."""
        return {name: self.host(name) for name in self._numbers}

    def within(self, name: str, command: Sequence[str]) -> list[str]:
        """The command line that runs a command at the end of a service's cable; any other's where it has none."""
        if name not in self._numbers:
            return list(command)
        return ["ip", "netns", "exec", self._namespace(name), *command]

    def cut(self, name: str) -> None:
        """Nothing reaches the service any more, nor it anything."""
        _ip("link", "set", self._cable(name), "down")

    def mend(self, name: str) -> None:
        """As before."""
        _ip("link", "set", self._cable(name), "up")

    def _namespace(self, name: str) -> str:
        return f"{_NAME}-{name}"

    def _cable(self, name: str) -> str:
        return f"pcull{self._numbers[name]}"

    def _lay(self, name: str) -> None:
        namespace, near, far = self._namespace(name), self._cable(name), "out"
        gateway = f"10.213.{self._numbers[name]}.1"
        _ip("netns", "add", namespace)
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", namespace)
        _ip("address", "add", f"{gateway}/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", namespace, "address", "add", f"{self.host(name)}/30", "dev", far)
        for device in (far, "lo"):
            _ip("-n", namespace, "link", "set", device, "up")
        _ip("-n", namespace, "route", "add", "default", "via", gateway)

    def _remove(self) -> None:
        for name in self._numbers:
            for arguments in (("link", "delete", self._cable(name)), ("netns", "delete", self._namespace(name))):
                subprocess.run(["ip", *arguments], check=False, capture_output=True)
        subprocess.run(["ip", "address", "delete", f"{HOME}/32", "dev", "lo"], check=False, capture_output=True)
