"""Does an operator see what a run does and waits for, in lines, in a terminal and as JSON, and nothing else?"""

import io
import json
import re
import sys
import threading

import pytest
from django.core.management.base import BaseCommand
from rich.console import Console

from gotong_royong.zero_downtime.running.reports import Json, Live, Plain, duration, reporter

pytestmark = pytest.mark.once

USERS = {"app": "accounts", "name": "0001_users", "direction": "up", "number": 1, "of": 2}
TASKS = {"app": "tasks", "name": "0002_tasks", "direction": "up", "number": 2, "of": 2}
STARTED = {"stage": "pre_deploy", "faked": False}
FINISHED = {
    "status": "succeeded",
    "seconds": 0.2,
    "tries": 1,
    "lock_wait": 0.0,
    "longest_blocked": 0.0,
    "total_blocked": 0.0,
    "blocked_sessions": 0,
    "error": "",
}
RUN = {"run": 7, "command": "migrate", "steps": 2}
RUN_FINISHED = {"run": 7, "status": "succeeded", "seconds": 3.21, "steps": 2, "error": ""}
PROGRESS = {"sql": "CREATE INDEX\n  CONCURRENTLY i ON users (id)", "phase": "scanning table", "percent": 45, "whom": ""}


HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def command(out=None):
    return BaseCommand(stdout=out or io.StringIO(), no_color=True)


def plain(*events, verbosity=1):
    """Return what is printed after these events."""
    one = command()
    with Plain(one, verbosity) as report:
        for event, facts in events:
            report(event, **facts)
    return one.stdout.getvalue()


def step(which=USERS, **finished):
    return ("step_started", which | STARTED), ("step_finished", which | FINISHED | finished)


class TestPlain:
    def test_a_run_without_trouble_looks_like_djangos(self):
        printed = plain(("run_started", RUN), *step(), *step(TASKS), ("run_finished", RUN_FINISHED))
        assert printed == (
            "  Applying accounts.0001_users... OK\n"
            "  Applying tasks.0002_tasks... OK\n"
            "Run 7 succeeded: 2 steps in 3.2 s.\n"
        )

    def test_the_words_of_a_step(self):
        down, faked = USERS | {"direction": "down"}, USERS | STARTED | {"faked": True}
        assert plain(*step(down)) == "  Unapplying accounts.0001_users... OK\n"
        assert plain(("step_started", faked), ("step_finished", USERS | FINISHED)).endswith("... FAKED\n")
        assert plain(*step(status="failed", error="it broke")).endswith("... FAILED\n")

    @pytest.mark.parametrize(
        ("finished", "remark"),
        [
            ({"seconds": 1.0, "longest_blocked": 0.1, "blocked_sessions": 4}, ""),
            ({"seconds": 75.0}, " (1 min 15 s)"),
            ({"longest_blocked": 0.25, "blocked_sessions": 1}, " (1 session waited for it for 0.25 s)"),
            (
                {"seconds": 2.0, "longest_blocked": 0.5, "blocked_sessions": 3},
                " (2.0 s; 3 sessions waited for it, the longest for 0.50 s)",
            ),
        ],
    )
    def test_what_is_worth_saying(self, finished, remark):
        assert plain(*step(**finished)) == f"  Applying accounts.0001_users... OK{remark}\n"

    def test_retries_at_3_and_5_and_every_10th(self):
        started, finished = step()
        tries = [("retry", {"attempt": n, "pause": 0.5, "whom": "process 1 (psql)"}) for n in range(1, 21)]
        printed = plain(started, *tries, finished)
        assert re.findall(r"Try (\d+) got no lock: process 1 \(psql\)\. Next in 0\.5 s\.", printed) == [
            "3",
            "5",
            "10",
            "20",
        ]
        assert printed.startswith("  Applying accounts.0001_users...\n    Try 3")
        assert printed.endswith("\n    OK\n")

    def test_a_sentence_has_one_end(self):
        said = plain(("retry", {"attempt": 3, "pause": 0.5, "whom": "Others waited."}))
        assert said == "    Try 3 got no lock: Others waited. Next in 0.5 s.\n"

    def test_progress_at_growing_intervals(self):
        one, clock = command(), Clock()
        report = Plain(one, clock=clock)
        said = []
        for second in range(200):
            clock.now, before = 100.0 + second, one.stdout.getvalue()
            report("progress", **PROGRESS)
            said += [second] * (one.stdout.getvalue() != before)
        assert said == [2, 6, 14, 30, 62, 122, 182]
        assert one.stdout.getvalue().startswith("    scanning table, 45%: CREATE INDEX CONCURRENTLY i ON users (id)\n")
        report("progress", **PROGRESS | {"sql": "another"})
        clock.now += 2
        report("progress", sql="another", phase="", percent=None, whom="process 9")
        assert one.stdout.getvalue().endswith("    running; waits for process 9: another\n")

    def test_verbosity(self):
        events = [("waiting", {"whom": "run 6"}), ("note", {"text": "Look."}), *step()]
        assert plain(*events, verbosity=0) == ""
        assert plain(*events) == "Waiting for run 6.\nLook.\n  Applying accounts.0001_users... OK\n"
        assert plain(*events, verbosity=2).endswith("users... OK (0.2 s)\n")

    def test_how_a_run_ended(self):
        failed = RUN_FINISHED | {"status": "rolled_back", "steps": 1, "error": "no"}
        assert plain(("run_finished", failed)) == "Run 7 rolled back: 1 step in 3.2 s.\n"

    def test_an_interrupted_line_is_ended(self):
        assert plain(("step_started", USERS | STARTED)).endswith("users...\n")

    def test_a_closed_pipe_ends_no_migration(self):
        class Closed(io.StringIO):
            def write(self, text):
                raise BrokenPipeError

        for report in (Plain(command(Closed())), Json(command(Closed()))):
            report("step_started", **USERS, **STARTED)

    def test_an_unknown_event_is_a_mistake(self):
        with pytest.raises(AttributeError):
            plain(("stepstarted", {}))


class TestJson:
    def test_only_json_comes_out(self, capsys):
        one = command()
        out = one.stdout
        with Json(one) as report:
            report("run_started", **RUN)
            one.stdout.write("Operations to perform:")
            print("said by a migration")
            report("step_started", **USERS, **STARTED)
        one.stdout.write("{}")
        started, first, _ = map(json.loads, out.getvalue().splitlines())
        assert started.pop("at") <= first.pop("at")
        assert started == {"event": "run_started"} | RUN
        assert first == {"event": "step_started"} | USERS | STARTED
        assert capsys.readouterr().err == "Operations to perform:\nsaid by a migration\n"

    def test_lines_of_two_threads_stay_whole(self):
        one = command()
        report = Json(one)

        def many():
            for _ in range(200):
                report("note", text="x" * 5000)

        threads = [threading.Thread(target=many) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {json.loads(line)["text"] for line in one.stdout.getvalue().splitlines()} == {"x" * 5000}


class TestLive:
    @pytest.fixture
    def terminal(self, monkeypatch):
        """A terminal that sys.stdout is, too, once pytest has begun to capture what this test prints."""
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "60")
        terminal = Terminal()
        return terminal, lambda: monkeypatch.setattr(sys, "stdout", terminal)

    def test_what_stands_at_the_foot(self, terminal):
        report = Live(command(terminal[0]))
        report.clock = clock = Clock()

        def foot(event, **facts):
            report(event, **facts)
            console = Console(file=io.StringIO(), width=60)
            console.print(report.foot())
            return console.file.getvalue().splitlines()

        with report:
            report("run_started", **RUN)
            clock.now += 2
            bar, doing = foot("step_started", **USERS, **STARTED)
            assert "0 of 2 steps, 2.0 s" in bar
            assert doing == "  Applying accounts.0001_users... 0.0 s"
            assert foot("retry", attempt=2, pause=0.5, whom="process 1")[2] == (
                "    Try 2 got no lock: process 1. Next in 0.5 s."
            )
            assert foot("progress", **PROGRESS)[2:] == [
                "    CREATE INDEX CONCURRENTLY i ON users (id)",
                "    scanning table, 45%",
            ]
            (bar,) = foot("step_finished", **USERS, **FINISHED)
            assert "1 of 2 steps" in bar

    def test_what_is_left_afterwards(self, terminal):
        terminal, become_stdout = terminal
        become_stdout()
        one = command(terminal)
        before = one.stdout
        with Live(one) as report:
            for event, facts in [("run_started", RUN), *step(), *step(TASKS, status="failed", seconds=2.0)]:
                report(event, **facts)
                one.stdout.write(f"after {event}...", ending="")
                one.stdout.flush()
                one.stdout.write(" done")
                print("said by a migration")
            report("run_finished", **RUN_FINISHED | {"status": "failed"})
            assert one.stdout is before
        assert sys.stdout is terminal
        lines = [CONTROLS.sub("", line) for line in terminal.getvalue().splitlines()]
        assert "  Applying accounts.0001_users... OK" in lines
        assert "  Applying tasks.0002_tasks... FAILED (2.0 s)" in lines
        assert "after step_finished... done" in lines
        assert sum("said by a migration" in line for line in lines) == 5
        assert lines[-1] == "Run 7 failed: 2 steps in 3.2 s."

    def test_an_exception_gives_the_terminal_back(self, terminal):
        terminal, become_stdout = terminal
        become_stdout()
        one = command(terminal)
        before, report = one.stdout, Live(one)

        def interrupted():
            with report:
                report("run_started", **RUN)
                assert one.stdout is not before
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert one.stdout is before
        assert sys.stdout is terminal
        assert terminal.getvalue().rfind(SHOW_CURSOR) > terminal.getvalue().rfind(HIDE_CURSOR) > -1


def test_which_reporter(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert type(reporter(command(Terminal()))) is Live
    assert type(reporter(command(Terminal()), verbosity=0)) is Plain
    assert type(reporter(command())) is Plain
    assert type(reporter(command(Terminal()), kind="json")) is Json
    monkeypatch.setenv("TERM", "dumb")
    assert type(reporter(command(Terminal()))) is Plain


def test_durations():
    assert [duration(seconds) for seconds in (0.04, 59.9, 61, 3599, 7300)] == [
        "0.0 s",
        "59.9 s",
        "1 min 1 s",
        "59 min 59 s",
        "2 h 1 min",
    ]
