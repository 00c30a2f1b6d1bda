"""The configuration is read again while agents work: nothing, or everything that can be, and no run is dropped."""

import os
import signal

import pytest
from agents import MIB, b3sum, wait_until

pytestmark = pytest.mark.root
SIZE = 24 * MIB


def write(agent, name, text):
    path = agent.config / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)


def edit(agent, name, old, new):
    text = (agent.config / name).read_text()
    assert old in text, text
    write(agent, name, text.replace(old, new))


def changes(answer):
    return {(change["kind"], change["name"], change["what"]) for change in answer["changes"]}


def test_a_reload_while_a_run_goes_on_changes_what_it_may_and_drops_nothing(agents, loop_device, fill):
    source, target, spare = loop_device(SIZE), loop_device(SIZE), loop_device(MIB)
    fill(source, SIZE)
    a, _b = agents.replica(source, target, source_volume=("--granule", "1M"), link_rate=8 * MIB)
    a.qrep("volume", "add", "spare", spare)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > MIB)
    text = (a.config / "jobs" / "db.toml").read_text()
    write(a, "jobs/db.toml", '# mine\nconnections = 3\nrpo = "4h"\nschedule = "0 0 1 1 *"\nshape = "office"\n' + text)
    write(a, "shapes/office.toml", 'peak = "100M"\n')
    edit(a, "volumes/spare.toml", "[identity]", 'accept = ["site-b"]\n[identity]')
    with open(a.config / "qrep.toml", "a") as file:
        file.write('[limits]\njobs_running = 5\nconnections = 100\nrate = "200M"\n[events]\nkeep = 5000\n')
    edit(a, "qrep.toml", 'name = "site-a"', 'name = "site-c"')

    before = a.qrep("reload", "-n")
    assert a.job()["connections"] == 2 and a.qrep("shape")["shapes"] == [], "nothing was changed yet"
    answer = a.qrep("reload")
    assert answer == before and not answer["problems"] and not answer["failed"]
    assert changes(answer) == {
        ("shape", "office", "added"), ("volume", "spare", "changed"), ("job", "db", "changed"), ("limits.jobs_running", "", "changed"),
        ("limits.rate", "", "changed"), ("events.keep", "", "changed"),
    }  # fmt: skip
    assert sorted(answer["restart"]) == ["limits.connections changed", "node.name changed"]
    job = next(change for change in answer["changes"] if change["kind"] == "job")
    assert set(job["fields"]) == {"connections", "rpo", "schedule", "shape"}
    shown = a.job()
    assert shown["connections"] == 3 and shown["shape"] == "office" and shown["limit"]["rate_bytes_per_s"] == 100 * MIB
    assert a.qrep("volume", "show", "spare")["accept"] == ["site-b"]
    assert (a.config / "jobs" / "db.toml").read_text().startswith("# mine"), "the file is the person's"

    wait_until(lambda: a.job()["state"] == "idle")
    codes = a.codes()
    assert codes.count("run-started") == codes.count("run-committed") == 1 and not {"run-interrupted", "run-stopped", "run-failed"} & set(codes)
    assert b3sum(target) == b3sum(source)
    event = a.events("config-reloaded")[-1]
    assert "job db: " in event["text"] and sorted(event["data"]["restart"]) == sorted(answer["restart"])
    again = a.qrep("reload")
    assert again["changes"] == [] and sorted(again["restart"]) == sorted(answer["restart"]), "what needs a restart still does"


def test_one_error_in_one_file_changes_nothing_and_all_are_told(agents, loop_device):
    agent = agents.agent("site-a")
    agent.qrep("volume", "add", "db", loop_device(MIB))
    write(agent, "shapes/office.toml", 'peak = "100M"\n')
    write(agent, "shapes/night.toml", 'peek = "100M"\n')
    edit(agent, "volumes/db.toml", "[identity]", 'undo_space = "3 times"\n[identity]')
    for arguments in (["reload"], ["reload", "-n"]):
        code, out, err = agent.run_command(*arguments)
        assert code == 2 and "nothing was changed" in err
        assert "night.toml:1: peek: unknown key\n  action: did you mean peak?" in out and "undo_space: '3 times' is not a size" in out
    assert [event["level"] for event in agent.events("config-refused")] == ["error"], "a dry run tells nothing"
    assert agent.qrep("shape")["shapes"] == []
    os.unlink(agent.config / "shapes" / "night.toml")
    edit(agent, "volumes/db.toml", "3 times", "3x")
    assert changes(agent.qrep("reload")) == {("shape", "office", "added"), ("volume", "db", "changed")}


def test_hang_up_reads_it_again_and_objects_come_and_go_as_files(agents, loop_device):
    agent = agents.agent("site-a")
    one, two = loop_device(MIB), loop_device(MIB)
    for name, device in (("one", one), ("two", two)):
        agent.qrep("volume", "add", name, device)
    agent.qrep("job", "create", "j", "--source", "one", "--target", "two")
    agent.run("j")
    kept = {path: (agent.config / path).read_text() for path in ("jobs/j.toml", "volumes/one.toml")}

    def reload():
        before = len(agent.events("config-reloaded"))
        agent.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(agent.events("config-reloaded")) > before)
        return agent.events("config-reloaded")[-1]["data"]

    for path in kept:
        os.unlink(agent.config / path)
    assert reload()["changes"] == ["job j removed", "volume one removed"]
    assert [volume["name"] for volume in agent.qrep("volume")] == ["two"] and agent.qrep("job") == []
    assert agent.refused("start", "j")["exit"] == 7
    for path, text in kept.items():
        write(agent, path, text)
    assert agent.refused("start", "j")["hint"].startswith("qrep reload reads it")
    assert reload()["changes"] == ["volume one added", "job j added"]
    assert agent.run("j")["counter"] == 2, "what was kept of it is still there"
    os.unlink(agent.config / "volumes" / "two.toml")
    assert agent.run_command("reload")[0] == 2, "a job needs it"


def test_what_cannot_change_while_something_goes_on_is_named_and_done_by_a_later_reload(agents, loop_device, fill):
    source, target, other = loop_device(SIZE), loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, _b = agents.replica(source, target, link_rate=4 * MIB)
    a.qrep("volume", "add", "other", other)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > MIB)
    edit(a, "jobs/db.toml", 'source = "db"', 'source = "other"')
    code, answer, _err = a.call("reload")
    assert code == 3 and [one["code"] for one in answer["failed"]] == ["busy"] and answer["failed"][0]["change"] == "job db: source"
    assert a.job()["source"] == "db" and a.job()["state"] in ("syncing", "connecting")
    a.qrep("stop", "db")
    assert changes(a.qrep("reload")) == {("job", "db", "changed")}
    assert a.job()["source"] == "other"


def test_a_restart_after_a_reload_takes_up_the_run_with_what_was_reloaded(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, _b = agents.replica(source, target, source_volume=("--granule", "1M"), link_rate=8 * MIB)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > 4 * MIB)
    edit(a, "jobs/db.toml", "source =", "connections = 4\nsource =")
    a.qrep("reload")
    code, seconds = a.terminate()
    assert code == 0 and seconds < 10
    a.start()
    wait_until(lambda: a.events("run-committed"))
    assert a.job()["connections"] == 4 and a.codes().count("run-taken-up") == 1
    assert b3sum(target) == b3sum(source)
