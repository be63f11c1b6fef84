"""The benchmark's own arithmetic: a wrong ratio would be believed."""

import json
import os
import xml.etree.ElementTree as ET

from tests.bench import chart, goals, reading, writing
from tests.bench.deep import Depth
from tests.bench.figures import quantile, summarise
from tests.bench.load import Answers
from tests.bench.race import Run
from tests.bench.sizes import Sizes
from tests.bench.usage import cpu_s, family, memory_mb, parent_of

SIZES = Sizes(10, {}, 339.0, 205.0)


def runs(*rates, own=50.0, servers=30.0):
    return [Run(rate, own, servers, 1.0) for rate in rates]


def written(spread=(9000, 12_000, 30_000), nothing=(300, 400, 500)):
    ours = {name: runs(*spread) for name in (writing.SPREAD, writing.HOT, writing.WIDE, writing.WARM)}
    peers = {name: runs(*nothing, own=1400.0, servers=100.0) for name in (goals.NOTHING, goals.CELERY, goals.DRAMATIQ)}
    return {
        **ours,
        **peers,
        "hf-nostro, 2 processes": runs(100),
        "hf-nostro, 8 processes": runs(240),
        "pgbench, 8": runs(4000),
    }


def judged(found):
    sizes = dict.fromkeys((writing.SPREAD, writing.HOT, writing.WARM), SIZES)
    return {goal.what: goal for goal in goals.judge_writing(found, sizes)}


def test_ratios_are_of_medians_and_the_best_of_each_peer():
    found = judged(written())

    assert found["1,000 organisations, against Celery doing nothing on Redis"].figure == "30×"
    assert found["against hf-nostro, the better of 2 and 8 processes"].figure == "50×"
    assert found["against pgbench at its best client count"].figure == "3.00×"
    assert found["CPU of all processes a Celery task doing nothing, against ours an event"].figure == "19×"


def test_a_goal_is_met_at_its_bound_and_missed_below():
    met = judged(written())["1,000 organisations, against Celery doing nothing on Redis"]
    missed = judged(written(spread=(9000, 11_900, 30_000)))[
        "1,000 organisations, against Celery doing nothing on Redis"
    ]

    assert (met.met, missed.met) == (True, False)


def test_the_short_form_judges_without_peers():
    ours = {name: of_name for name, of_name in written().items() if name.startswith("usage-feeds")}

    assert "worker CPU an event, spread, feeds unread" in judged(ours)
    assert not any("against" in what for what in judged(ours))


def test_a_page_is_compared_with_the_static_reply_and_the_worst_filter_counts():
    rates = {reading.STATIC: 20_000, reading.FROM_PROCESS: 17_000, reading.FROM_REDIS: 5000, reading.FROM_POSTGRES: 900}
    answers = {name: [Answers(rate, 1.0, 1.0, 1.0, 1.0, 1.0)] for name, rate in rates.items()}
    depths = [Depth("no filter", 40_000, 1.0, 1.0, 1.0), Depth("kind=consume", 40_000, 1.0, 1.2, 1.2)]
    found = {goal.what: goal for goal in goals.judge_reading(answers, depths)}

    assert found["page from the process, against the static reply"] == (
        "page from the process, against the static reply",
        "≥ 0.85×",
        "0.85×",
        True,
    )
    assert found["deep page against page 1, Postgres path, the worst filter"].met is False


def test_the_median_stands_for_the_rounds_and_the_worst_share_for_the_waits():
    assert summarise([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert f"{summarise([3.0, 1.0, 2.0]):.0f}" == "2 (1 to 3)"
    assert [quantile(list(range(100)), share) for share in (0.5, 0.99)] == [50, 99]


def test_the_charts_draw_every_contender(tmp_path, monkeypatch):
    deep = {"first_ms": 0.8, "deep_ms": 0.81, "deep_page": 40_000}
    found = {
        "machine": "2 cores",
        "began": "2026-11-24T00:00:00+00:00",
        "write": {"runs": {name: [run._asdict() for run in of_name] for name, of_name in written().items()}},
        "read": {"depths": [deep], "runs": {reading.PLAIN_PEER: [{"p50_ms": 700.0}]}},
    }
    (tmp_path / "found.json").write_text(json.dumps(found))
    monkeypatch.setattr("sys.argv", ["chart", str(tmp_path / "found.json"), str(tmp_path)])
    chart.main()

    words = "".join(ET.parse(tmp_path / "writing.svg").getroot().itertext())
    assert all(name in words for name in written())
    assert "700 ms" in "".join(ET.parse(tmp_path / "depth.svg").getroot().itertext())


def test_what_a_process_uses_is_read_from_the_kernel():
    own = os.getpid()

    assert parent_of(own) == os.getppid()
    assert own in family([os.getppid()])
    assert cpu_s([own]) > 0
    assert 5 < memory_mb(own) < 5000
