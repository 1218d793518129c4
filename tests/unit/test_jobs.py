"""Background jobs: progress, joining, owners, cancel, failure."""

import threading

import pytest

from sfn.errors import Cancelled, JobError, PairError
from sfn.jobs import Jobs


@pytest.fixture
def jobs():
    room = Jobs()
    yield room
    room.close()


def wait(job):
    assert job.finished.wait(10), f"{job.title} is still {job.state}"
    return job


def test_result_and_progress(jobs):
    def work(job):
        job.report(1, 4, "first", "tensors")
        return 7

    job = wait(jobs.start("count", work, key="k", owner="me"))
    assert (job.state, job.result, job.share, job.unit) == ("done", 7, 1.0, "tensors")
    assert job.finished_ago_s is not None
    assert job.eta_s is None


def test_same_key_is_joined_while_it_runs_and_started_anew_after(jobs):
    gate = threading.Event()
    first = jobs.start("one", lambda job: gate.wait(10), key="same", owner="me")
    assert jobs.start("one", lambda job: None, key="same", owner="you") is first
    gate.set()
    wait(first)
    assert jobs.start("one", lambda job: None, key="same", owner="you") is not first


def test_only_an_owner_cancels_and_the_last_one_stops_it(jobs):
    started = threading.Event()

    def work(job):
        while True:
            started.set()
            job.cancel_event.wait(0.01)
            job.report(0, 1)

    job = jobs.start("endless", work, key="e", owner="me")
    jobs.start("endless", work, key="e", owner="you")
    assert started.wait(10)
    with pytest.raises(JobError, match="another viewer"):
        jobs.cancel(job.id, "stranger")
    jobs.cancel(job.id, "me")
    assert not job.finished.wait(0.1)
    jobs.cancel(job.id, "you")
    assert wait(job).state == "cancelled"
    with pytest.raises(JobError, match="no job 999"):
        jobs.cancel(999, "me")


def test_a_cancelled_job_is_not_joined(jobs):
    gate = threading.Event()
    job = jobs.start("one", lambda job: gate.wait(10), key="same", owner="me")
    jobs.cancel(job.id, "me")
    again = jobs.start("one", lambda job: 3, key="same", owner="me")
    gate.set()
    assert again is not job
    assert wait(again).result == 3


def test_failures_are_sentences(jobs):
    def known(job):
        raise PairError("A has no layer 9.")

    def defect(job):
        raise ZeroDivisionError("x")

    assert wait(jobs.start("a", known, key="a", owner="me")).error == "A has no layer 9."
    failed = wait(jobs.start("b", defect, key="b", owner="me"))
    assert failed.state == "failed"
    assert "ZeroDivisionError" in failed.error


def test_report_raises_once_cancelled(jobs):
    seen = []

    def work(job):
        job.cancel_event.set()
        try:
            job.report(1, 2)
        except Cancelled as error:
            seen.append(str(error))
            raise

    assert wait(jobs.start("Scanning", work, key="s", owner="me")).state == "cancelled"
    assert seen == ["Scanning was cancelled."]


def test_close_cancels_what_runs():
    room = Jobs()
    job = room.start("endless", lambda job: [job.report(0, 1) or job.cancel_event.wait(0.01) for _ in iter(int, 1)],
                     key="e", owner="me")  # fmt: skip
    room.close()
    assert job.state == "cancelled"
    assert not room.active()
