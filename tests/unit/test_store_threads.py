"""Many threads, one store: Streamlit runs every viewer's page in a thread of its own."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sfn.errors import StoreError
from sfn.records import Generation, Histogram, TensorDelta
from sfn.store import Store
from tests.unit.test_store_generations import NOON, question

THREADS = 8
ROUNDS = 12


@pytest.fixture
def results(tmp_path):
    with Store(tmp_path / "sfn.duckdb") as opened:
        yield opened


def together(work) -> list:
    """work(thread number) in eight threads that start at once; their results, their errors raised."""
    gate = threading.Barrier(THREADS)

    def start(number):
        gate.wait(timeout=30)
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return [done.result(timeout=120) for done in [pool.submit(start, number) for number in range(THREADS)]]


def delta(name, size):
    counts = [Histogram(form, (size,) * 200, size, size, size, size) for form in ("script", "paper")]
    return TensorDelta(
        name, 0, "mlp", "up_proj", "weight", None, (1,), size, "F32", "F32", *[float(size)] * 6, size, *counts
    )


def test_all_threads_write_the_same_rows(results):
    """The hardest case for DuckDB, which refuses the second of two writes to a row rather than wait."""

    def work(number):
        for i in range(ROUNDS):
            results.save_delta("pair", delta("contended", number * ROUNDS + i))
            results.save_recipe("o_proj@all=B", f"plan{number}", "pair")
            results.file_hashes["one", 1, 1] = str(number)

    together(work)
    (kept,) = results.deltas("pair")
    assert kept == delta("contended", kept.n)  # figures and both histograms are of one and the same write
    assert len(results.recipes("pair")) == len(results.file_hashes) == 1


def test_readers_never_see_half_a_tensor(results):
    def work(number):
        for i in range(ROUNDS):
            if number < 4:
                results.save_delta("pair", delta(f"t{number}", i))
            for found in results.deltas("pair"):
                assert found == delta(found.name, found.n)
            results.delta_table("pair")
        return True

    assert all(together(work))
    assert len(results.deltas("pair")) == 4


def test_every_answer_gets_an_id_of_its_own(results):
    def work(number):
        ids = []
        for i in range(ROUNDS):
            asked = question(f"thread {number}, round {i}")
            one = Generation(asked, f"{number}-{i}", 1, 2, 0.1, 0.2, "stop", "a", "b", NOON)
            ids.append(results.save_generation(one))
            assert results.find_generation(asked.key) == one
            assert results.generation(ids[-1]) == one
        return ids

    ids = [number for found in together(work) for number in found]
    assert len(set(ids)) == THREADS * ROUNDS
    assert results.count_generations() == THREADS * ROUNDS


def test_closing_under_readers_is_a_sentence_or_an_answer(results):
    for i in range(20):
        results.save_delta("pair", delta(f"t{i}", i))

    def work(number):
        if number == 0:
            results.close()
            return "closed"
        said = set()
        for _ in range(ROUNDS):
            try:
                said.add(len(results.deltas("pair")))
            except StoreError as error:
                said.add("was closed" in str(error))
        return said

    first, *others = together(work)
    assert first == "closed"
    assert all(said <= {20, True} for said in others)
    with Store(results.path) as again:
        assert len(again.deltas("pair")) == 20
