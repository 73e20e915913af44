"""Clients of a simulated mesh: each draws what to do next, asks some host, and remembers what it was told."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import msgspec
import trio

from chaos.observations import ClientAnswered, ClientAsked
from chaos.simulation.executor import AGENT, POISON, Work
from chaos.simulation.world import World
from mesh.errors import RelayMeshError

ANSWER_S = 8.0
"""A client that has heard nothing for so long does not know."""
RECENT = 30
"""Cancels, replays and looks choose among this many latest tasks."""
BATCH_SHARE = 0.2
"""Of wide replays, that are of many tasks."""
PURGED_AFTER_MS = (1_000, 8_000)
HELD_S = (0.5, 8.0)
DELAYS_MS = (100, 9_000)
EXPIRIES_MS = (100, 9_000)
MAX_ATTEMPTS = 4
SAVES_MAX = 3
SNOOZES_MAX = MAX_ATTEMPTS + 1
"""More often than a step is tried."""
_GIVES_UP_SHARE = 0.1
SLOT_RUN_S = 3.0
_LONG_SHARE, _LONG_FACTOR, _LONGEST_S = 0.1, 10, 10.0
_WAITING_LONG_SHARE, _WAITING_LONG_S = 0.1, 15.0
"""Some waiting steps run for so long: it takes a detection and an election until anybody else could run them, too."""
_PADS = (0, 0, 0, 300, 5_000)
"""Small rows travel in datagrams, larger ones by pulls, the largest beside their row."""


class Workload:
    """All clients of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._spec = world.scenario.workload
        self._calls = 0
        self.accepted: dict[str, tuple[str, ...]] = {}
        """Tasks that some host acknowledged, in order, with the names of their steps."""
        self.submits = 0

    async def run(self) -> None:
        """Have all clients work until cancelled."""
        for number in range(self._spec.schedules):
            await self._schedule(f"tick-{number}")
        if not self._spec.rate:
            return
        async with trio.open_nursery() as nursery:
            for number in range(self._spec.clients):
                nursery.start_soon(self._client, f"client {number}")
            if self._spec.holds_every_s:
                nursery.start_soon(self._hold_now_and_then)

    async def _client(self, name: str) -> None:
        draws, replays = self._world.stream(name), self._world.stream(f"{name} replays")
        every_s = self._spec.clients / self._spec.rate
        keys = 0
        while True:
            await trio.sleep(draws.expovariate(1 / every_s))
            roll = draws.random()
            # The draw is made whether or not it can be used, so that one answer more does not change all that follows.
            picked = draws.random()
            host = self._host(draws)
            if roll < self._spec.cancel_share:
                await self._change(host, "cancel", picked, mode=draws.choice(["hard", "soft"]))
            elif roll < self._spec.cancel_share + self._spec.replay_share:
                await self._replay(replays, host, picked)
                if draws.random() < 0.3:
                    await self._replay(replays, self._host(draws), picked)
            elif roll > 1 - self._spec.purge_share:
                keep_ms = int(draws.uniform(*PURGED_AFTER_MS))
                await self.ask(host, "purge", {"doneRetentionMs": keep_ms, "deadRetentionMs": 2 * keep_ms})
            elif roll < 0.6:
                keys += 1
                await self._submit(draws, host, f"{name} {keys}")
            else:
                await self._look(host, picked)

    async def _schedule(self, name: str) -> None:
        definition = {"steps": [{"id": "only", "agent": AGENT, "input": {"run_s": SLOT_RUN_S}}]}
        args = {"name": name, "cron": "* * * * *", "catchUp": "all", "definition": definition}
        await self.ask(self._host(self._world.stream(f"schedule {name}")), "schedule-add", args)

    async def _hold_now_and_then(self) -> None:
        """Pause or drain something, and end that again a little later, perhaps at another host."""
        draws = self._world.stream("holds")
        names = self._world.scenario.node_names()
        while True:
            await trio.sleep(draws.expovariate(1 / self._spec.holds_every_s))
            node: dict[str, Any] = {"node": draws.choice(names)}
            whole: dict[str, Any] = {"mesh": True}
            agent: dict[str, Any] = {"agent": AGENT}
            command, scope = draws.choice([("pause", whole), ("pause", agent), ("pause", node), ("drain", node)])
            await self.ask(draws.choice(names), command, scope)
            await trio.sleep(draws.uniform(*HELD_S))
            await self.ask(draws.choice(names), "resume", scope)

    async def lift_holds(self) -> None:
        """End whatever is still held, at each host that knows of it: its word is later than the one that it heard."""
        for name, host in self._world.hosts.items():
            for each in host.node.runtime.holds.all() if host.is_up and host.node is not None else ():
                kind, of = each.scope
                scope = {"mesh": True} if kind == "mesh" else {"agent" if kind == "agent" else "node": of}
                await self.ask(name, "resume", scope)

    def _host(self, draws: random.Random) -> str:
        return draws.choice(self._world.scenario.node_names())

    def _task(self, picked: float) -> str | None:
        recent = list(self.accepted)[-RECENT:]
        return recent[int(picked * len(recent))] if recent else None

    async def _submit(self, draws: random.Random, host: str, key: str) -> None:
        args = self._definition(draws) | {"idempotencyKey": key}
        self._vary_handlers(args["definition"]["steps"], key)
        if self._spec.wait_share and draws.random() < self._spec.wait_share:
            for step in args["definition"]["steps"]:
                step["onPartition"] = "wait"
                if step["agent"] == AGENT and draws.random() < _WAITING_LONG_SHARE:
                    step["input"]["run_s"] = _WAITING_LONG_S
        if self._spec.timed_share:
            self._time(args["definition"]["steps"], key)
        if self._spec.replicas and draws.random() < 0.3:
            args["replicas"] = self._spec.replicas
        other = self._host(draws)
        if draws.random() < self._spec.twice_share:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._submit_at, host, args)
                nursery.start_soon(self._submit_at, other, args)
        else:
            await self._submit_at(host, args)

    def _vary_handlers(self, steps: list[dict[str, Any]], key: str) -> None:
        if not self._spec.handler_share:
            return
        draws = self._world.stream(f"handlers of {key}")
        for step in steps:
            if step["agent"] == AGENT and draws.random() < self._spec.handler_share:
                step["input"]["choices"] = {
                    "saves": draws.randint(0, SAVES_MAX),
                    "snoozes": draws.choice([0, 0, 1, SNOOZES_MAX]),
                    "gives_up": draws.random() < _GIVES_UP_SHARE,
                }

    def _time(self, steps: list[dict[str, Any]], key: str) -> None:
        draws = self._world.stream(f"times of {key}")
        if draws.random() < self._spec.timed_share:
            for step in steps:
                delay_ms = draws.choice([0, draws.randint(*DELAYS_MS)])
                expires_ms = draws.choice([0, delay_ms + draws.randint(*EXPIRIES_MS)])
                step |= {"delayMs": delay_ms, "expiresMs": expires_ms}

    async def _submit_at(self, host: str, args: Mapping[str, Any]) -> None:
        self.submits += 1
        answer = await self.ask(host, "submit-workflow", args)
        if answer is not None:
            self.accepted[answer["taskId"]] = tuple(step["id"] for step in args["definition"]["steps"])

    def _definition(self, draws: random.Random) -> dict[str, Any]:
        if draws.random() < self._spec.poison_share:
            return {"definition": {"steps": [{"id": "only", "agent": POISON}]}}
        if draws.random() >= self._spec.diamond_share:
            return {"definition": {"steps": [self._step(draws, "only", [])]}}
        parents: dict[str, list[str]] = {"top": [], "left": ["top"], "right": ["top"], "join": ["left", "right"]}
        steps = [self._step(draws, name, above) for name, above in parents.items()]
        if self._spec.continue_share and draws.random() < self._spec.continue_share:
            steps[-1]["onFailure"] = "continue"
        return {"definition": {"steps": steps}}

    def _step(self, draws: random.Random, name: str, above: list[str]) -> dict[str, Any]:
        run_s = draws.expovariate(1 / self._spec.run_s) if self._spec.run_s else 0.0
        if draws.random() < _LONG_SHARE:
            run_s = min(run_s * _LONG_FACTOR, _LONGEST_S)
        fails = draws.randint(1, MAX_ATTEMPTS - 1) if draws.random() < self._spec.fail_share else 0
        doomed = draws.random() < self._spec.fail_share / 4
        work = Work(run_s=round(run_s, 3), fails=fails, doomed=doomed, pad="x" * draws.choice(_PADS))
        step: dict[str, Any] = {
            "id": name,
            "agent": AGENT,
            "dependsOn": above,
            "maxAttempts": MAX_ATTEMPTS,
            "priority": draws.choice(["high", "normal"]),
            "input": json.loads(msgspec.json.encode(work)),
        }
        if draws.random() < 0.1:
            step["node"] = draws.choice(self._world.scenario.node_names())
        return step

    async def _change(self, host: str, command: str, picked: float, **args: Any) -> None:
        task_id = self._task(picked)
        if task_id is not None:
            await self.ask(host, command, {"taskId": task_id, **args})

    async def _replay(self, draws: random.Random, host: str, picked: float) -> None:
        # Draws of its own: what clients do besides must not depend on how far a replay goes.
        wide = draws.random() < self._spec.wide_replay_share
        if not wide:
            await self._change(host, "replay", picked)
        elif draws.random() < BATCH_SHARE:
            await self.ask(host, "replay-batch", {"limit": draws.randint(1, 30)})
        elif task_id := self._task(picked):
            await self._change(host, "replay", picked, fromStep=draws.choice(self.accepted[task_id]))

    async def _look(self, host: str, picked: float) -> None:
        task_id = self._task(picked)
        if task_id is not None:
            await self.ask(host, "task", {"taskId": task_id})

    async def ask(self, host: str, command: str, args: Mapping[str, Any]) -> Any:
        """The answer, or None. What was asked and heard is told to the world."""
        world = self._world
        self._calls += 1
        call = self._calls
        world.tell(ClientAsked(at_ms=world.now_ms(), host=host, call=call, command=command, args=args))
        answer, error, text = None, "", ""
        try:
            answer = await world.hosts[host].call(command, args, ANSWER_S)
        except RelayMeshError as refusal:
            error, text = type(refusal).__name__, str(refusal)
        except TimeoutError:
            text = "no answer"
        world.tell(
            ClientAnswered(
                at_ms=world.now_ms(),
                host=host,
                call=call,
                command=command,
                args=args,
                answer=answer,
                error=error,
                text=text,
            )
        )
        return answer
