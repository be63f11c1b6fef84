"""The arithmetic of the benchmark: a wrong ratio would not be noticed."""

import json
import os
import xml.etree.ElementTree as ET

from tests.bench import chart, goals, reading, writing
from tests.bench.backlog import Run
from tests.bench.figures import quantile, summarise
from tests.bench.load import Answers
from tests.bench.page_depth import Depth
from tests.bench.resources import cpu_s, memory_mb, parent_of, process_tree
from tests.bench.sizes import Sizes

SIZES = Sizes(10, {}, 339.0, 205.0)


def runs(*rates, own=50.0, servers=30.0):
    return [Run(rate, own, servers, 1.0) for rate in rates]


def write_runs(spread=(9000, 12_000, 30_000), nothing=(300, 400, 500)):
    ours = {name: runs(*spread) for name in (writing.SPREAD, writing.HOT, writing.WIDE, writing.WARM)}
    peers = {
        name: runs(*nothing, own=1400.0, servers=100.0)
        for name in (goals.CELERY_NOTHING, goals.CELERY_TRANSACTION, goals.DRAMATIQ_TRANSACTION)
    }
    return {
        **ours,
        **peers,
        "hf-nostro, 2 processes": runs(100),
        "hf-nostro, 8 processes": runs(240),
        "pgbench, 8": runs(4000),
    }


def goals_by_name(runs_by_name):
    sizes = dict.fromkeys((writing.SPREAD, writing.HOT, writing.WARM), SIZES)
    return {goal.what: goal for goal in goals.judge_writing(runs_by_name, sizes)}


def test_a_ratio_is_of_the_medians_of_ours_and_of_the_best_form_of_a_peer():
    found = goals_by_name(write_runs())

    assert found["1,000 organisations, against Celery on Redis with a task that does nothing"].figure == "30×"
    assert found["against hf-nostro, the better of 2 and 8 processes"].figure == "50×"
    assert found["against pgbench at its best client count"].figure == "3.00×"
    assert found["CPU of all processes: a Celery task that does nothing, against one of our events"].figure == "19×"


def test_a_goal_is_met_at_its_bound_and_missed_below_it():
    met = goals_by_name(write_runs())["1,000 organisations, against Celery on Redis with a task that does nothing"]
    missed = goals_by_name(write_runs(spread=(9000, 11_900, 30_000)))[
        "1,000 organisations, against Celery on Redis with a task that does nothing"
    ]

    assert (met.met, missed.met) == (True, False)


def test_a_short_run_has_only_the_goals_without_peers():
    ours = {name: of_name for name, of_name in write_runs().items() if name.startswith("usage-feeds")}

    assert "worker CPU an event, 1,000 organisations, no feed is read" in goals_by_name(ours)
    assert not any("against" in what for what in goals_by_name(ours))


def test_a_page_is_compared_with_the_static_reply_and_page_depth_is_judged_by_the_worst_filter():
    rates = {reading.STATIC: 20_000, reading.FROM_PROCESS: 17_000, reading.FROM_REDIS: 5000, reading.FROM_POSTGRES: 900}
    rates |= {reading.STATIC_BALANCE: 30_000, reading.BALANCE: 15_000}
    answers = {name: [Answers(rate, 1.0, 1.0, 1.0, 1.0, 1.0)] for name, rate in rates.items()}
    depths = [Depth("no filter", 40_000, 1.0, 1.0, 1.0), Depth("kind=consume", 40_000, 1.0, 1.2, 1.2)]
    found = {goal.what: goal for goal in goals.judge_reading(answers, depths)}

    assert found["page from the process, against the static reply"] == (
        "page from the process, against the static reply",
        "≥ 0.85×",
        "0.85×",
        True,
    )
    assert found["balance from Redis, against a static reply of its size"].met is False
    assert found["deep page against page 1, from Postgres, the worst filter"].met is False


def test_rounds_are_summarised_by_the_median_and_times_by_quantiles():
    assert summarise([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert f"{summarise([3.0, 1.0, 2.0]):.0f}" == "2 (1 to 3)"
    assert [quantile(list(range(100)), share) for share in (0.5, 0.99)] == [50, 99]


def test_the_charts_have_a_bar_for_every_contender(tmp_path, monkeypatch):
    deep = {"first_ms": 0.8, "deep_ms": 0.81, "deep_page": 40_000}
    found = {
        "machine": "2 cores",
        "began": "2026-11-24T00:00:00+00:00",
        "write": {"runs": {name: [run._asdict() for run in of_name] for name, of_name in write_runs().items()}},
        "read": {"depths": [deep], "runs": {reading.PLAIN_PEER: [{"p50_ms": 700.0}]}},
    }
    (tmp_path / "found.json").write_text(json.dumps(found))
    monkeypatch.setattr("sys.argv", ["chart", str(tmp_path / "found.json"), str(tmp_path)])
    chart.main()

    texts = "".join(ET.parse(tmp_path / "writing.svg").getroot().itertext())
    assert all(name in texts for name in write_runs())
    assert "700 ms" in "".join(ET.parse(tmp_path / "depth.svg").getroot().itertext())


def test_the_parent_cpu_time_and_memory_of_a_process_are_read():
    own = os.getpid()

    assert parent_of(own) == os.getppid()
    assert own in process_tree([os.getppid()])
    assert cpu_s([own]) > 0
    assert 5 < memory_mb(own) < 5000
