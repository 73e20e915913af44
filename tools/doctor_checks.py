"""The checks of `relaymesh doctor`: what was found, and what mends it. Pure functions over the answers of one node.

Each takes the answers of admin commands by the command's name. A check whose commands did not answer says so itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tools.durations import format_duration

Level = Literal["ok", "warn", "fail"]
Answers = Mapping[str, Any]

CLOCK_WARN_MS = 1_000
CLOCK_FAIL_MS = 60_000
"""Stamps further ahead than this are parked by peers instead of merged."""
DISK_FREE_WARN_BYTES = 1024**3
FILES_WARN = 0.8
FILES_MIN = 1_024
WAITING_WARN_MS = 5 * 60_000
PULL_WARN_MS = 60_000
BUDGET_WARN = 0.9
NAMES_SHOWN_MAX = 5


class Finding(NamedTuple):
    """What one check came to."""

    level: Level
    found: str
    mend: str = ""


class Check(NamedTuple):
    """One check: its name, the commands that it looks at, and the judgement."""

    name: str
    commands: tuple[str, ...]
    judge: Callable[[Answers], Finding]


class Result(NamedTuple):
    """One line of the report."""

    check: str
    status: Level
    found: str
    mend: str


def examine(answers: Answers, errors: Mapping[str, str]) -> list[Result]:
    """All checks in order. `errors` says for each command without an answer why there is none."""
    return [Result(check.name, *_judged(check, answers, errors)) for check in CHECKS]


def _judged(check: Check, answers: Answers, errors: Mapping[str, str]) -> Finding:
    for command in check.commands:
        if command in errors:
            mend = (
                "an older node does not know this command: upgrade it" if "unknown command" in errors[command] else ""
            )
            return Finding("warn", f"could not be looked at: {errors[command]}", mend)
    return check.judge(answers)


def _names(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN_MAX
    return ", ".join(names[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def check_store(answers: Answers) -> Finding:
    """Whether the node can commit, and work."""
    health = answers["health"]
    if not health["dbOk"]:
        return Finding("fail", "the store fails: commits do not succeed", "look at the disk, then at the node's log")
    if not health["gateOpen"]:
        mend = "start a peer, or see `relaymesh members`; a mesh of which only this node is left: --start-alone"
        return Finding("warn", "the node waits to hear from a peer before it touches old work", mend)
    others = [problem for problem in health["problems"] if "disk" not in problem.lower()]
    return Finding("fail", "; ".join(others), "see `relaymesh health`") if others else Finding("ok", "commits succeed")


def check_disk(answers: Answers) -> Finding:
    """Free space, and the budget of the database."""
    health = answers["health"]
    free, used, budget = health["diskFreeBytes"], health["databaseBytes"] or 0, health["diskBudgetBytes"]
    found = f"{_size(free)} free, the database has {_size(used)}" + (f" of {_size(budget)}" if budget else "")
    if health["diskPressure"]:
        return Finding("fail", f"{found}; less than minFreeDiskBytes: no submit is taken", "make room on the disk")
    if budget and used > budget:
        return Finding("fail", f"{found}: it is over its budget", "raise diskBudgetBytes, or `relaymesh purge`")
    if free < max(DISK_FREE_WARN_BYTES, 2 * used):
        return Finding("warn", f"{found}: a snapshot needs twice the database", "make room on the disk")
    if budget and used > BUDGET_WARN * budget:
        return Finding("warn", f"{found}: ended tasks go soon", "raise diskBudgetBytes, or shorten doneRetentionMs")
    return Finding("ok", found)


def check_root(answers: Answers) -> Finding:
    """Where the root lies, and who may read it."""
    diagnosis = answers["diagnosis"]
    root, kind, mode = diagnosis["root"], diagnosis["rootFileSystem"], diagnosis["rootPermissions"]
    if diagnosis["rootIsOnNetwork"]:
        mend = "move the root to a local disk: stop the node, copy the folder, start it there"
        return Finding("fail", f"{root} is on {kind}, where SQLite's locks do not hold", mend)
    if mode is not None and int(mode, 8) & 0o077:
        return Finding("warn", f"others than its user may look into {root} (mode {mode})", f"chmod 700 {root}")
    return Finding("ok", f"{root} on {kind or 'an unknown file system'}, mode {mode or 'unknown'}")


def check_files(answers: Answers) -> Finding:
    """Open files against their limit."""
    used, limit = answers["diagnosis"]["openFiles"], answers["diagnosis"]["openFilesMax"]
    found = f"{'?' if used is None else used} of {limit} open files"
    mend = "raise the limit: LimitNOFILE= in the unit of systemd, or `ulimit -n`"
    if used is not None and used > FILES_WARN * limit:
        return Finding("fail", found, mend)
    return Finding("warn", f"{found}: the limit is low", mend) if limit < FILES_MIN else Finding("ok", found)


def check_members(answers: Answers) -> Finding:
    """Who is not ALIVE, and since when."""
    now_ms = answers["mesh-summary"]["generatedAtMs"]
    members = answers["members"]
    away = [member for member in members if member["status"] in ("SUSPECT", "DEAD")]
    if answers["mesh-summary"]["reclaimFrozen"]:
        mend = "look at this host's network first: it may be the one that is cut off"
        return Finding("fail", "more than half of the mesh failed at once, nothing is taken over for now", mend)
    if not away:
        gone = sum(member["status"] == "LEFT" for member in members)
        return Finding("ok", f"{len(members) - gone} ALIVE" + (f", {gone} left in order" if gone else ""))
    told = [f"{m['nodeId']} {m['status']} for {format_duration(now_ms - m['updatedAtMs'])}" for m in away]
    mend = "start them or mend their network; for good: `relaymesh mesh-prune --node ID`"
    others = [member for member in members if not member["isThisNode"]]
    return Finding("fail" if len(away) == len(others) else "warn", _names(told), mend)


def check_clock(answers: Answers) -> Finding:
    """This node's clock against those of its peers."""
    offsets = {p["nodeId"]: p["clockOffsetMs"] for p in answers["convergence-report"]["peers"]}
    known = {peer: offset for peer, offset in offsets.items() if offset is not None}
    if not known:
        return Finding("ok", "no peer to compare with")
    peer, offset = max(known.items(), key=lambda each: abs(each[1]))
    found = f"the farthest is {peer}, {format_duration(abs(offset))} {'ahead' if offset > 0 else 'behind'}"
    mend = "run a time service (chrony, systemd-timesyncd) on both hosts"
    if abs(offset) >= CLOCK_FAIL_MS:
        return Finding("fail", found, mend)
    return Finding("warn", found, mend) if abs(offset) >= CLOCK_WARN_MS else Finding("ok", found)


def check_trust(answers: Answers) -> Finding:
    """Who lags behind in keys, revocations or CAs."""
    told = [
        f"{what}: {_names(answers[command]['lagging'])}"
        for what, command in (("gossip keys", "mesh-keys"), ("revocations", "mesh-revocations"), ("CAs", "mesh-ca"))
        if answers[command]["lagging"]
    ]
    if told:
        mend = "wait for them, or start them: they ask by themselves; see `relaymesh mesh keys list` and `mesh ca list`"
        return Finding("warn", "behind in " + "; ".join(told), mend)
    return Finding("ok", "all members have the same keys, revocations and CAs")


def check_certificate(answers: Answers) -> Finding:
    """Whether this node's own certificate is accepted."""
    status = answers["tls-status"]
    if not status["ok"]:
        mend = "enroll the host anew (`relaymesh mesh enroll`), then `relaymesh --root DIR mesh install FILE`"
        return Finding("fail", "this node's certificate is refused by the mesh", mend)
    return Finding("ok", f"enrolment {status['enrolment']} is accepted")


def check_versions(answers: Answers) -> Finding:
    """Which releases and protocols are mixed."""
    members = [member for member in answers["members"] if member["status"] != "LEFT"]
    strangers = [member["protocolProblem"] for member in members if member.get("protocolProblem")]
    if strangers:
        return Finding("fail", "; ".join(strangers[:3]), "upgrade the side that the sentence names")
    releases = Counter(member["release"] or "unknown" for member in members)
    told = ", ".join(f"{count} with {release}" for release, count in sorted(releases.items()))
    if len(releases) > 1:
        return Finding("warn", f"releases are mixed: {told}", "fine while you upgrade; then bring all to one release")
    return Finding("ok", told)


def check_replication(answers: Answers) -> Finding:
    """Whether peers lack what is here, or the other way round."""
    peers = answers["convergence-report"]["peers"]
    if silent := [f"{peer['nodeId']} ({peer['error']})" for peer in peers if peer["error"]]:
        mend = "look at the stream address of that peer (`members`), and at its log"
        return Finding("warn", f"cannot be compared: {_names(silent)}", mend)
    if differing := [peer["nodeId"] for peer in peers if peer["differingRanges"]]:
        return Finding("fail", f"the contents differ from {_names(differing)}", "relaymesh maintenance")
    behind = [
        f"{peer['nodeId']} (here {peer['missingHere']}, there {peer['missingThere']})"
        for peer in peers
        if (peer["missingHere"] or peer["missingThere"]) and (peer["lastPullAgeMs"] or 0) > PULL_WARN_MS
    ]
    if behind:
        mend = "look at the log for failed pulls; `relaymesh convergence-report` counts what lacks"
        return Finding("warn", f"rows lack, and the last pull was long ago: {_names(behind)}", mend)
    lacking = sum((peer["missingHere"] or 0) + (peer["missingThere"] or 0) for peer in peers)
    return Finding("ok", f"{len(peers)} peers" + (f", {lacking} rows on their way" if lacking else " agree"))


def check_quarantine(answers: Answers) -> Finding:
    """Rows that were put aside, and keys with two tasks."""
    listed = answers["quarantine-list"]
    told = [f"{count} {reason}" for reason, count in sorted(listed["counts"].items()) if count]
    if listed["keyConflicts"]:
        told.append(f"{len(listed['keyConflicts'])} keys that two tasks claim")
    mend = "relaymesh quarantine list"
    return Finding("warn", ", ".join(told), mend) if told else Finding("ok", "nothing was put aside")


def check_agents(answers: Answers) -> Finding:
    """Agents that steps wait for and nobody has."""
    missing = answers["diagnosis"]["agentsMissing"]
    if not missing:
        return Finding("ok", "every agent that steps wait for is there")
    told = [f"{agent} ({count} steps)" for agent, count in missing.items()]
    mend = "start a node that has it (--agents FILE.py, or agents/scripts.json), or cancel those tasks"
    return Finding("fail", f"nobody has {_names(told)}", mend)


def check_waiting(answers: Answers) -> Finding:
    """Steps that wait for too long, and why."""
    waiting = [step for step in answers["diagnosis"]["waiting"] if step["waitedMs"] >= WAITING_WARN_MS]
    if not waiting:
        return Finding("ok", f"nothing waits for longer than {format_duration(WAITING_WARN_MS)}")
    reasons = Counter(step["reason"] for step in waiting).most_common(3)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons)
    longest = max(waiting, key=lambda step: step["waitedMs"])
    found = f"{len(waiting)} of the oldest wait ({why}), the longest for {format_duration(longest['waitedMs'])}"
    return Finding("warn", f"{found}: {longest['text']}", f"relaymesh explain {longest['stepId']}")


def check_dead_letters(answers: Answers) -> Finding:
    """What gave up lately."""
    lately, span = answers["diagnosis"]["deadLettersLately"], format_duration(answers["diagnosis"]["latelyMs"])
    if not lately:
        return Finding("ok", f"none in the last {span}")
    count, first = sum(each["count"] for each in lately), lately[0]
    found = f"{count} in the last {span}; most often {first['agentId']}: {first['error']}"
    return Finding("warn", found, "mend the cause, then `relaymesh replay TASK`; `dead` lists them")


def check_settings(answers: Answers) -> Finding:
    """Settings that contradict each other or the host."""
    diagnosis = answers["diagnosis"]
    settings, disk = diagnosis["settings"], diagnosis["diskBytes"] or float("inf")
    wrong = []
    if settings["minFreeDiskBytes"] >= disk:
        wrong.append("minFreeDiskBytes is more than the disk has: no submit will ever be taken")
    if settings["diskBudgetBytes"] + settings["minFreeDiskBytes"] > disk:
        wrong.append("diskBudgetBytes and minFreeDiskBytes together are more than the disk has")
    if 0 < settings["deadRetentionMs"] < settings["doneRetentionMs"]:
        wrong.append("dead letters go before successes (deadRetentionMs < doneRetentionMs)")
    kept = max(settings["doneRetentionMs"], settings["deadRetentionMs"])
    if settings["doneRetentionMs"] and settings["deadRetentionMs"] and settings["attemptRetentionMs"] > kept:
        wrong.append("attemptRetentionMs is longer than any task is kept")
    if not settings["gossipEncryption"]:
        wrong.append("gossipEncryption is off: whoever sees the network reads the gossip")
    if diagnosis["settingsWithoutEffect"]:
        wrong.append(f"nothing reads {_names(diagnosis['settingsWithoutEffect'])}")
    mend = "change relaymesh-settings.json (or RELAYMESH_ variables) and start the node again"
    return Finding("warn", "; ".join(wrong), mend) if wrong else Finding("ok", "no contradiction")


CHECKS = (
    Check("store", ("health",), check_store),
    Check("disk", ("health",), check_disk),
    Check("root", ("diagnosis",), check_root),
    Check("open-files", ("diagnosis",), check_files),
    Check("members", ("members", "mesh-summary"), check_members),
    Check("clock", ("convergence-report",), check_clock),
    Check("trust", ("mesh-keys", "mesh-revocations", "mesh-ca"), check_trust),
    Check("certificate", ("tls-status",), check_certificate),
    Check("versions", ("members",), check_versions),
    Check("replication", ("convergence-report",), check_replication),
    Check("quarantine", ("quarantine-list",), check_quarantine),
    Check("agents", ("diagnosis",), check_agents),
    Check("waiting", ("diagnosis",), check_waiting),
    Check("dead-letters", ("diagnosis",), check_dead_letters),
    Check("settings", ("diagnosis",), check_settings),
)
COMMANDS = tuple(dict.fromkeys(command for check in CHECKS for command in check.commands))
