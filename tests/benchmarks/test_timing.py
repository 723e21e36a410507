"""What the benchmarks conclude from their samples, and when they refuse to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import timing
from benchmarks.timing import Ratio, Sample, Usage

STAT = "cpu  100 20 30 800 40 5 5 10 7 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"


def rounds(**times):
    """Rounds of contenders; a time is seconds, or (seconds, share that others used)."""
    samples = {
        name: [Sample(*(one if isinstance(one, tuple) else (one, 0.0))) for one in each] for name, each in times.items()
    }
    return [dict(zip(samples, row, strict=True)) for row in zip(*samples.values(), strict=True)]


def test_the_machine_worked_whenever_no_core_was_idle_or_waited_for_a_disk():
    # 100 + 20 + 30 + 5 + 5 + 10 worked, 800 + 40 did not; what guests used is in the first column already
    assert timing.parse_stat(STAT, ticks=10) == (17.0, 101.0)


def test_others_used_what_the_machine_worked_beyond_this_process():
    before, after = Usage(10.0, 100.0, 4.0), Usage(17.0, 120.0, 8.0)
    assert timing.others_share(before, after) == (7.0 - 4.0) / 20.0


def test_no_more_can_be_used_by_others_than_nothing():
    # The kernel's ticks are coarser than the process's own clock.
    assert timing.others_share(Usage(0.0, 0.0, 0.0), Usage(1.0, 10.0, 1.01)) == 0.0


def test_without_proc_nobody_knows_and_no_sample_is_clean(tmp_path):
    usage = timing.read_usage(tmp_path / "stat")
    assert usage.machine is None
    assert timing.others_share(usage, usage) is None
    assert not Sample(1.0, None).clean


def test_this_process_is_not_among_the_others(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    stat.write_text(STAT)
    monkeypatch.setattr(timing.os, "sysconf", lambda name: 10)
    monkeypatch.setattr(timing.time, "process_time", lambda: 3.0)
    before = timing.read_usage(stat)
    stat.write_text(STAT.replace("cpu  100", "cpu  150").replace("800", "850"))  # 5 of 10 seconds worked
    monkeypatch.setattr(timing.time, "process_time", lambda: 7.5)
    assert timing.others_share(before, timing.read_usage(stat)) == pytest.approx(0.05)


def test_a_process_that_this_one_started_is_not_among_the_others_while_it_runs():
    before = timing.read_usage()
    work = "import time\nwhile time.process_time() < 0.6: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "done\n"
        during = timing.read_usage()
        child.communicate("\n")
    assert during.own - before.own >= 0.5
    assert timing.read_usage().own >= during.own  # and it counts once after its end


@pytest.mark.parametrize(("others", "clean"), [(0.0, True), (0.05, True), (0.051, False), (None, False)])
def test_a_sample_is_clean_up_to_five_per_cent(others, clean):
    assert Sample(1.0, others).clean is clean


def test_the_clock_adds_up_what_is_inside_and_waits_for_the_device(monkeypatch):
    times = iter([10.0, 12.0, 50.0, 51.5])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(times))
    synced = []
    clock = timing.Clock(lambda: synced.append(1))
    for _ in range(2):
        with clock:
            pass
    assert clock.seconds == 3.5
    assert len(synced) == 4


def quiet_for(monkeypatch, shares):
    """Let others use these shares of the machine, one sample after the other."""
    given = iter(shares)
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)  # which takes its time in a process full of tests
    monkeypatch.setattr(timing, "others_share", lambda before, after: next(given))


def test_contenders_take_turns_until_enough_rounds_are_clean(monkeypatch):
    quiet_for(monkeypatch, [0.0, 0.0, 0.0, 0.3, 0.0, 0.0])
    seen, told = [], []
    taken = timing.alternate(
        {"a": lambda clock: seen.append("a"), "b": lambda clock: seen.append("b")},
        repeats=2, sync=lambda: None, tell=told.append,
    )  # fmt: skip
    assert "".join(seen) == "ababab"
    assert [timing.clean_round(one, "a", "b") for one in taken] == [True, False, True]
    assert len(told) == 6
    assert "30.0%" in told[3]


def test_a_busy_machine_is_given_up_after_twice_as_many_rounds(monkeypatch):
    quiet_for(monkeypatch, [0.5] * 8)
    assert len(timing.alternate({"a": lambda clock: None}, repeats=4, sync=lambda: None)) == 8


def test_a_ratio_is_the_median_of_the_pairs_not_the_ratio_of_the_medians():
    taken = rounds(slow=[2.0, 9.0, 8.0], fast=[1.0, 3.0, 1.0])
    assert timing.compare(taken, "slow", "fast") == Ratio(3.0, 2.0, 8.0, 3, busy=False)


def test_noisy_rounds_are_left_out_where_enough_are_clean():
    taken = rounds(slow=[2.0, 2.0, 2.0, 100.0], fast=[1.0, 1.0, 1.0, (1.0, 0.2)])
    assert timing.compare(taken, "slow", "fast") == Ratio(2.0, 2.0, 2.0, 3, busy=False)


def test_a_noisy_third_contender_does_not_spoil_the_other_two():
    taken = rounds(slow=[2.0] * 3, fast=[1.0] * 3, third=[(5.0, 0.9)] * 3)
    assert timing.compare(taken, "slow", "fast").value == 2.0
    assert timing.compare(taken, "slow", "third").value is None


def test_fewer_than_three_clean_pairs_conclude_nothing():
    taken = rounds(slow=[2.0, (2.0, 0.2), 2.0, 2.0], fast=[1.0, 1.0, (1.0, 0.2), 1.0])
    assert timing.compare(taken, "slow", "fast") == Ratio(None, None, None, 2, busy=True)


def test_force_takes_all_pairs_and_says_that_the_machine_was_busy():
    taken = rounds(slow=[(2.0, 0.2), 4.0, 6.0], fast=[1.0, 1.0, 1.0])
    assert timing.compare(taken, "slow", "fast", force=True) == Ratio(4.0, 2.0, 6.0, 3, busy=True)


def test_force_changes_nothing_on_a_quiet_machine():
    taken = rounds(slow=[2.0, 2.0, 2.0, (9.0, 0.9)], fast=[1.0] * 4)
    assert timing.compare(taken, "slow", "fast", force=True) == timing.compare(taken, "slow", "fast")


def test_the_last_line_holds_null_for_what_cannot_be_concluded():
    ratios = {"known": Ratio(2.0, 1.5, 2.5, 3, False), "noisy": Ratio(None, None, None, 1, True)}
    line = timing.result_line({"prefills": 45}, ratios, forced=False)
    assert "\n" not in line
    assert json.loads(line) == {
        "known": 2.0, "noisy": None, "prefills": 45, "spread": {"known": [1.5, 2.5]}, "busy": True, "forced": False,
    }  # fmt: skip


def test_what_was_not_measured_is_null_without_blaming_the_machine():
    line = json.loads(timing.result_line({}, {"absent": timing.UNMEASURED}, forced=False))
    assert line["absent"] is None
    assert line["busy"] is False


def test_ratios_are_told_with_their_spread_or_with_the_reason_why_not(capsys):
    timing.print_ratios(
        {
            "known": Ratio(2.0, 1.5, 2.5, 3, False),
            "noisy": Ratio(None, None, None, 1, True),
            "forced": Ratio(2.0, 1.0, 3.0, 3, True),
            "absent": timing.UNMEASURED,
        }
    )
    known, noisy, forced, absent = capsys.readouterr().out.splitlines()
    assert known == "known: 2.00 (1.50 to 2.50 in 3 pairs)"
    assert noisy == "noisy: the machine was busy: no conclusion (1 clean pairs)"
    assert forced.endswith("in 3 pairs, though the machine was busy)")
    assert absent == "absent: not measured"


def test_the_table_shows_the_median_of_the_clean_samples(capsys):
    timing.print_times("T", rounds(a=[1.0, 2.0, 3.0, (50.0, 0.9)]), unit="examples", amount=10, notes={"n": {"a": "x"}})
    shown = capsys.readouterr().out
    row = next(line.split() for line in shown.splitlines() if line.split()[:1] == ["a"])
    assert row == ["a", "5.00", "2.00", "3.00", "3/4", "x"]


def test_this_machine_s_own_counters_can_be_read():
    usage = timing.read_usage()
    assert usage.own > 0
    if Path("/proc/stat").exists():
        assert usage.machine is not None
        assert 0 < usage.machine <= usage.capacity
