"""What is done to the system, in order; each is over when it returns."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from deploy.local import EVERY_SERVICE
from tests.faults.network import can_cut
from tests.faults.trial import CUT, ON_DISK, SPARES, Trial
from tests.support.disks import fill

Fault = Callable[[Trial], None]
HOLD_SECONDS = 4.0
"""That a process stays away."""
CUT_SECONDS = 20.0
"""Longer than a session with Kafka lasts (shared.worker): a worker's partitions are taken from it."""
FULL_SECONDS = 15.0
RANDOM_KILLS = 8


def kill(name: str, trial: Trial, seconds: float = HOLD_SECONDS) -> None:
    """SIGKILL a service; start it again later."""
    trial.system.kill(name)
    if name == "inference":
        trial.killed_at.append(time.time())
    time.sleep(seconds)
    trial.system.restart(name)


def kill_at_random(seed: int, trial: Trial) -> None:
    """One service after another, some while others are still reading their states again."""
    random = np.random.default_rng(seed)
    for _ in range(RANDOM_KILLS):
        kill(str(random.choice(EVERY_SERVICE)), trial, float(random.uniform(0.0, 2.0)))
        time.sleep(float(random.uniform(0.0, 3.0)))


def roll(trial: Trial) -> None:
    """End each service in order and start it again, as an upgrade does."""
    for name in EVERY_SERVICE:
        trial.system.restart(name)


def stop_broker(number: int, trial: Trial) -> None:
    """End a broker in order, and start it again."""
    broker = trial.cluster.brokers[number]
    broker.stop(keep=True)
    time.sleep(HOLD_SECONDS)
    broker.start()


def kill_broker(number: int, trial: Trial) -> None:
    """SIGKILL a broker, and start it again."""
    broker = trial.cluster.brokers[number]
    broker.kill()
    time.sleep(HOLD_SECONDS)
    broker.start()


def no_broker(trial: Trial) -> None:
    """All brokers at once: there is no Kafka."""
    for broker in trial.cluster.brokers:
        broker.kill()
    time.sleep(FULL_SECONDS)
    for broker in trial.cluster.brokers:
        broker.launch()
    for broker in trial.cluster.brokers:
        broker.wait()


def lose_broker(number: int, trial: Trial) -> None:
    """A broker dies and never comes back, nor what it had on its disk."""
    broker = trial.cluster.brokers[number]
    broker.kill()
    broker.stop()
    time.sleep(HOLD_SECONDS)


def cut(name: str, trial: Trial) -> None:
    """Nothing passes between a service and everybody else."""
    trial.cables.cut(name)
    time.sleep(CUT_SECONDS)
    trial.cables.mend(name)


def full_disk(trial: Trial) -> None:
    """The disk of a worker's states has no room."""
    fill(trial.disk.ballast)
    time.sleep(FULL_SECONDS)
    trial.disk.ballast.unlink()


def full_spool(trial: Trial) -> None:
    """Kafka is away, and the disk of the spool has no room."""
    for broker in trial.cluster.brokers:
        broker.kill()
    time.sleep(HOLD_SECONDS)
    fill(trial.spool.ballast)
    time.sleep(FULL_SECONDS)
    trial.spool.ballast.unlink()
    for broker in trial.cluster.brokers:
        broker.launch()
    for broker in trial.cluster.brokers:
        broker.wait()


def more_workers(trial: Trial) -> None:
    """A second worker of two kinds comes, and partitions move; one goes in order, the other is killed."""
    for name in SPARES:
        trial.system.restart(name)
    time.sleep(HOLD_SECONDS)
    trial.system.kill(SPARES[0], signal.SIGTERM)
    trial.system.kill(SPARES[1])


def plan(trial: Trial, seed: int, quick: bool) -> Sequence[tuple[str, Fault]]:
    """Names and faults; those that this user may not make on this machine are left out."""
    services = ("inference", "similarity", "decision") if quick else EVERY_SERVICE
    faults: list[tuple[str, Fault]] = [(f"SIGKILL {name}", partial(kill, name)) for name in services]
    if not quick:
        faults += [
            (f"{RANDOM_KILLS} times SIGKILL a service, at random", partial(kill_at_random, seed)),
            ("roll all services, as an upgrade does", roll),
            ("add a worker of prada and of tmsp, and remove them", more_workers),
            ("stop a broker and start it again", partial(stop_broker, 0)),
        ]
    faults.append(("SIGKILL a broker and start it again", partial(kill_broker, 1)))
    if can_cut():
        faults += [(f"cut {name} off for {CUT_SECONDS:.0f} s", partial(cut, name)) for name in CUT[: 1 if quick else 3]]
    if not quick:
        faults.append(("SIGKILL all brokers, and start them again", no_broker))
        if trial.disk.small:
            faults.append((f"fill the disk of {ON_DISK}'s states", full_disk))
        if trial.spool.small:
            faults.append(("SIGKILL all brokers and fill the disk of the spool", full_spool))
    faults.append(("lose a broker for good", partial(lose_broker, 2)))
    return faults
