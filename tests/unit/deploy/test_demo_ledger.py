"""The demo's ledger, view, picture and report, on event streams that passed through the codec."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from rich.console import Console

from deploy.demo_ledger import AccountLedger, Kind, Ledger
from deploy.demo_plot import draw
from deploy.demo_view import LiveView, line, table
from shared.bundle import DETECTORS
from shared.codec import (
    decode_queries,
    decode_signals,
    decode_verdict,
    encode_queries,
    encode_signals,
    encode_verdict,
)
from shared.events import Action, QueryBatch, Signal, SignalBatch, Verdict

START = 1_700_000_000_000_000
THRESHOLD = math.log(1e6)
PROFILES = 3


class Stream:
    """Events as the topics carry them, with a hundredth of a second between queries."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.now = START
        self.batches = 0

    def queries(self, *accounts: str, action: Action = Action.ALLOW) -> bytes:
        """One batch, a row an account; returns the record's value."""
        rows = len(accounts)
        accepted_at = self.now + 10_000 * np.arange(rows, dtype=np.int64)
        self.now += 10_000 * rows
        self.batches += 1
        value = encode_queries(
            QueryBatch(
                batch_id=self.batches.to_bytes(16, "big"),
                model_name="clothes",
                model_version="1",
                query_ids=[f"{self.batches}/{row}" for row in range(rows)],
                accounts=accounts,
                request_ids=[""] * rows,
                accepted_at=accepted_at,
                inputs=np.zeros((rows, 1, 2, 2), dtype=np.uint8),
                logits=np.zeros((rows, 2), dtype=np.float32),
                answers=np.zeros((rows, 2), dtype=np.float32),
                actions=np.full(rows, action, dtype=np.uint8),
                perturbed=np.full(rows, action.enforced),
            )
        )
        self.ledger.queries(decode_queries(value))
        return value

    def signal(
        self, account: str, queries: int, detector: str, statistic: float, log_r: float = 0.0, flagged: bool = False
    ) -> None:
        """One detector's word."""
        vector = np.array([log_r, log_r + 1, log_r + 2], dtype=np.float32)
        signal = Signal(account, queries, 0, statistic, 0.5, flagged, {}, vector, self.now, "q")
        value = encode_signals(SignalBatch(detector, "clothes", "1", bytes(16), 0, 0, [signal]))
        self.ledger.signals(decode_signals(value))

    def verdict(self, account: str, action: Action, rule: str = "extraction") -> None:
        """Decision's word."""
        verdict = Verdict("v", account, "clothes", action, rule, "because", 14.0, self.now, 0)
        self.ledger.verdict(decode_verdict(encode_verdict(verdict)))


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(
        [AccountLedger("shop", Kind.BENIGN, "", 40), AccountLedger("thief", Kind.ATTACK, "JBDA-TR", 60)], THRESHOLD
    )


@pytest.fixture
def stream(ledger: Ledger) -> Stream:
    return Stream(ledger)


def test_a_verdict_takes_effect_at_the_first_query_answered_under_it(ledger: Ledger, stream: Stream) -> None:
    for _ in range(30):
        stream.queries("thief", "shop")
    stream.verdict("thief", Action.PERTURB)
    stream.queries("thief")
    stream.queries("thief", action=Action.PERTURB)
    thief = ledger.accounts["thief"]
    assert (thief.queries, thief.effective_at_query) == (32, 32)
    assert thief.seconds_to_verdict == pytest.approx(0.61)
    assert thief.verdict is Action.PERTURB
    assert ledger.accounts["shop"].effective_at_query is None


def test_a_ban_that_leaves_no_answered_query_takes_effect_at_the_next_one(ledger: Ledger, stream: Stream) -> None:
    stream.queries("thief", "thief", "thief")
    stream.verdict("thief", Action.BAN)
    thief = ledger.accounts["thief"]
    assert thief.effective_at_query == 4
    assert thief.seconds_to_verdict == pytest.approx(0.03)


def test_observing_an_account_is_no_effect(ledger: Ledger, stream: Stream) -> None:
    stream.queries("shop")
    stream.verdict("shop", Action.OBSERVE)
    stream.queries("shop", action=Action.OBSERVE)
    shop = ledger.accounts["shop"]
    assert (shop.effective_at_query, shop.seconds_to_verdict, shop.hurt) == (None, None, False)


def test_a_batch_that_was_published_twice_counts_once(ledger: Ledger, stream: Stream) -> None:
    value = stream.queries("shop", "shop")
    ledger.queries(decode_queries(value))
    assert ledger.accounts["shop"].queries == 2


def test_evidence_is_the_smallest_over_profiles_of_the_average_over_all_detectors(
    ledger: Ledger, stream: Stream
) -> None:
    stream.signal("thief", 10, "tmsp", 0.4, log_r=8.0)
    assert ledger.accounts["thief"].evidence[-1] == (10, pytest.approx(8.0 - math.log(4)))
    for detector in DETECTORS[1:]:
        stream.signal("thief", 10, detector, 0.4, log_r=8.0)
    assert ledger.accounts["thief"].evidence[-1] == (10, pytest.approx(8.0))


def test_an_account_is_judged_when_every_detector_has_spoken_of_its_last_query(ledger: Ledger, stream: Stream) -> None:
    stream.queries("shop", "shop")
    for detector in DETECTORS:
        assert not ledger.accounts["shop"].judged
        stream.signal("shop", 2, detector, 0.1)
    assert ledger.accounts["shop"].judged
    stream.queries("shop")
    assert not ledger.accounts["shop"].judged


def test_a_thief_who_goes_free_is_complained_of(ledger: Ledger, stream: Stream) -> None:
    stream.queries("thief", "shop")
    stream.verdict("thief", Action.OBSERVE)
    assert ledger.complaints() == ["thief (JBDA-TR) sent 1 queries and was never perturbed or banned"]


@pytest.mark.parametrize("action", [Action.PERTURB, Action.THROTTLE, Action.BAN])
def test_an_honest_account_that_was_ever_hurt_is_complained_of(ledger: Ledger, stream: Stream, action: Action) -> None:
    stream.queries("thief", action=Action.PERTURB)
    stream.verdict("shop", action)
    stream.verdict("shop", Action.ALLOW, rule="release")
    (complaint,) = ledger.complaints()
    assert "shop is honest" in complaint
    assert action.name.lower() in complaint


def test_strangers_on_the_topics_are_left_alone(ledger: Ledger, stream: Stream) -> None:
    stream.queries("somebody")
    stream.signal("somebody", 1, "tmsp", 0.1)
    stream.signal("shop", 1, "a-fifth-detector", 0.1)
    stream.verdict("somebody", Action.BAN)
    assert set(ledger.accounts) == {"shop", "thief"}
    assert all(account.worst is Action.ALLOW for account in ledger.accounts.values())


def caught(ledger: Ledger, stream: Stream) -> None:
    """A thief who is caught after 30 of 60 queries, and a shop that is not."""
    for query in range(1, 61):
        stream.queries("thief", action=Action.PERTURB if query > 30 else Action.ALLOW)
        for detector in DETECTORS:
            value = math.nan if query < 10 else query / 60
            stream.signal("thief", query, detector, value, log_r=query / 3, flagged=query > 30)
        if query == 30:
            stream.verdict("thief", Action.PERTURB)
    for query in range(1, 41):
        stream.queries("shop")
        for detector in DETECTORS:
            stream.signal("shop", query, detector, 0.2)


def test_the_table_says_who_was_caught_and_when(ledger: Ledger, stream: Stream) -> None:
    caught(ledger, stream)
    console = Console(width=150, record=True)
    console.print(LiveView(ledger, console))
    rows = {row.split()[0]: row for row in console.export_text().splitlines() if row.split()}
    assert "perturb" in rows["thief"]
    assert "31 (" in rows["thief"]
    assert "1 / 0.5" in rows["thief"]
    assert "10^8.7 / 10^6.0" in rows["thief"]
    assert "allow" in rows["shop"]
    assert "0.2 / 0.5" in rows["shop"]


def test_a_narrow_terminal_gets_the_table_without_statistics(ledger: Ledger, stream: Stream) -> None:
    caught(ledger, stream)
    console = Console(width=90, record=True)
    console.print(table(ledger, 90))
    text = console.export_text()
    assert "tmsp" not in text
    assert "perturb" in text
    assert max(map(len, text.splitlines())) <= 90


def test_where_nobody_watches_a_line_says_it(ledger: Ledger, stream: Stream) -> None:
    assert line(ledger, 3.0).endswith("enforced verdicts: none yet")
    caught(ledger, stream)
    assert line(ledger, 12.0) == "   12 s  100 queries answered; enforced verdicts: thief perturb"


def test_the_picture_is_drawn(ledger: Ledger, stream: Stream, tmp_path: Path) -> None:
    caught(ledger, stream)
    draw(ledger, tmp_path / "demo.png", "a demo")
    pixels = image.imread(tmp_path / "demo.png")[..., :3]
    assert pixels.shape[0] > 1000
    assert pixels.shape[1] > 1000
    # The thief's red and the shop's blue are both on it.
    assert (np.abs(pixels - np.array([0xC1, 0x12, 0x1F]) / 255).max(axis=-1) < 0.05).any()
    assert (np.abs(pixels - np.array([0x1F, 0x77, 0xB4]) / 255).max(axis=-1) < 0.05).any()


def test_the_picture_of_accounts_that_sent_nothing_is_drawn_too(ledger: Ledger, tmp_path: Path) -> None:
    draw(ledger, tmp_path / "demo.png", "nothing yet")
    assert (tmp_path / "demo.png").stat().st_size > 10_000
