"""The parts of the worker's shell that need no Kafka: its health, its pace, and what Faust must not drop."""

from __future__ import annotations

import pytest
from mode.utils.queues import FlowControlQueue
from pydantic import ValidationError

from shared.clock import ManualClock
from shared.worker import (
    HANGING_SECONDS,
    SLICE_SECONDS,
    UNREACHABLE_SECONDS,
    FlowControl,
    Pace,
    Watch,
    WorkerSettings,
    run_worker,
)
from tests.support.streams import brightness_stage


async def test_records_that_have_arrived_stay_when_faust_lets_them_flow_again() -> None:
    control = FlowControl()
    queue: FlowControlQueue[int] = FlowControlQueue(flow_control=control, clear_on_resume=True)
    control.resume()
    await queue.put(30)
    control.resume()
    assert queue.qsize() == 1
    control.suspend()
    control.resume()
    # They come again: after a real stop the consumer seeks to what was committed.
    assert queue.empty()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def watch(clock: ManualClock) -> Watch:
    return Watch(clock, stalled_seconds=60)


class TestHealth:
    def test_a_worker_whose_event_loop_hangs_is_not_live(self, watch: Watch, clock: ManualClock) -> None:
        clock.advance(HANGING_SECONDS - 1)
        assert watch.live(in_order=False)
        clock.advance(2)
        assert not watch.live(in_order=False)
        watch.turned()
        assert watch.live(in_order=False)

    def test_a_worker_with_records_waiting_and_no_progress_is_not_live(self, watch: Watch, clock: ManualClock) -> None:
        clock.advance(61)
        watch.turned()
        assert not watch.live(in_order=True)
        watch.progressed()
        assert watch.live(in_order=True)

    def test_no_progress_is_forgiven_while_partitions_move_or_states_are_recovered(
        self, watch: Watch, clock: ManualClock
    ) -> None:
        clock.advance(3600)
        watch.turned()
        assert watch.live(in_order=False)

    def test_a_worker_is_ready_while_it_is_in_order_and_kafka_answers(self, watch: Watch, clock: ManualClock) -> None:
        assert watch.ready(in_order=True)
        assert not watch.ready(in_order=False)
        clock.advance(UNREACHABLE_SECONDS + 1)
        assert not watch.ready(in_order=True)
        watch.answered()
        assert watch.ready(in_order=True)


class TestPace:
    def test_is_halved_when_work_takes_too_long_and_never_reaches_nothing(self) -> None:
        pace = Pace(512)
        for expected in (256, 128, 64, 32, 16, 8, 4, 2, 1, 1):
            pace.took(pace.records, SLICE_SECONDS + 1)
            assert pace.records == expected

    def test_grows_again_to_what_the_settings_allow(self) -> None:
        pace = Pace(512)
        pace.took(512, SLICE_SECONDS + 1)
        for _ in range(5):
            pace.took(pace.records, 0.01)
        assert pace.records == 512

    def test_does_not_grow_because_a_small_rest_was_quick(self) -> None:
        pace = Pace(512)
        pace.took(512, SLICE_SECONDS + 1)
        pace.took(3, 0.001)
        assert pace.records == 256


class TestStarting:
    def test_a_stage_that_cannot_be_built_is_refused_with_its_reason(self, capsys: pytest.CaptureFixture[str]) -> None:
        def refuse(settings: WorkerSettings) -> object:
            raise ValueError("policy.yaml: line 7: field share")

        with pytest.raises(SystemExit, match="2"):
            run_worker(refuse, WorkerSettings)  # type: ignore[arg-type]
        assert capsys.readouterr().err == "refused to start: policy.yaml: line 7: field share\n"

    def test_settings_that_make_no_sense_are_refused_by_name(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PORTCULLIS_TAKE_RECORDS", "0")
        with pytest.raises(ValidationError, match="take_records"):
            WorkerSettings()
        with pytest.raises(SystemExit, match="2"):
            run_worker(lambda settings: brightness_stage(settings.partitions), WorkerSettings)
        assert "take_records" in capsys.readouterr().err
