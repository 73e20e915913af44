"""Faults in who is believed to live, and in what follows from it."""

from __future__ import annotations

from chaos.mutants.edits import Edit
from chaos.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        name="no-dead-redial",
        breaks="seeds and DEAD members are called for ever: a partition heals, however long it lasted",
        caught_by=("comes-to-rest",),
        edits=(
            Edit("mesh.redial:Redial._find_missing", "for member in members.dead():", "for member in ():"),
            Edit("mesh.redial:_is_there", "if member is not None and member.active:", "if member is not None:"),
            Edit("mesh.redial:_is_there", "members.active_others()", "members.all()"),
        ),
    ),
    Mutant(
        name="dwell-used-for-reclaim",
        breaks="dwell windows withhold new placements only: a returned node keeps its work",
        caught_by=("takeover-justified",),
        edits=(
            Edit(
                "node.gossip_loop:GossipLoop.owner_state",
                "if member.status is Status.DEAD:",
                "if self._gossip.effective.status(node_id, self._env.clock.monotonic()) is Status.DEAD:",
            ),
        ),
    ),
    Mutant(
        name="take-over-on-suspect",
        breaks="work is taken only from an owner that is gone, never from one that is doubted",
        caught_by=("takeover-justified",),
        edits=(
            Edit(
                "node.gossip_loop:GossipLoop.owner_state",
                "if member.status is Status.DEAD:",
                "if member.status in (Status.SUSPECT, Status.DEAD):",
            ),
        ),
    ),
    Mutant(
        name="reload-without-effect",
        breaks="settings that change in a running node are taken into use by the part that goes by them",
        caught_by=("settings-in-force",),
        edits=(
            Edit("node.node:Node.take_settings", "fanout=settings.gossip_fanout", "fanout=self.gossip.profile.fanout"),
        ),
    ),
    Mutant(
        name="unbounded-freeze",
        breaks="a mass failure is frozen for two dead times, then work continues with those very failures",
        caught_by=("suspicions-end",),
        edits=(
            Edit(
                "mesh.freeze:MassFailureFreeze.evaluate",
                "fresh = [node_id for node_id in failing if node_id not in self._spent]",
                "fresh = list(failing)",
            ),
            Edit(
                "mesh.freeze:MassFailureFreeze.evaluate",
                "unspent = [node_id for node_id in others if node_id not in self._spent]",
                "unspent = list(others)",
            ),
        ),
    ),
    Mutant(
        name="take-over-in-freeze",
        breaks="while most others seem to fail, nothing is taken from them",
        caught_by=("nothing-taken-in-freeze",),
        edits=(
            Edit(
                "node.gossip_loop:GossipLoop.may_reclaim",
                "return self._gossip.may_reclaim(self._env.clock.monotonic())",
                "return True",
            ),
            Edit("mesh.verdicts:Verdicts.judge", "if self.freeze.frozen(now):", "if False:"),
        ),
    ),
    Mutant(
        name="no-dedup",
        breaks="a rumor is news once: its copies are dropped",
        caught_by=("rumors-are-news",),
        edits=(Edit("mesh.rumors:RumorDedup.is_new", "return False", "return True"),),
    ),
    Mutant(
        name="refutation-without-incarnation",
        breaks="what a node says of itself beats whatever was said of it before, so a doubted node can clear itself",
        caught_by=("comes-to-rest",),
        edits=(
            Edit(
                "mesh.own_record:OwnRecord._sign",
                "incarnation=self.current.body.incarnation + 1",
                "incarnation=self.current.body.incarnation",
            ),
        ),
    ),
    Mutant(
        name="retire-before-acknowledged",
        breaks="a key ring is followed by the next one only when every member has installed it",
        caught_by=("nobody-cut-off",),
        edits=(Edit("node.trust:lagging", "member.active and member.ring < ring", "member.ring < 0"),),
    ),
    Mutant(
        name="ca-promoted-before-heard",
        breaks="another CA signs only when every member follows the list that names it",
        caught_by=("nobody-cut-off",),
        edits=(
            Edit(
                "node.trust:Trust.check_next_authorities",
                "each.active and each.authorities < self.authorities.number",
                "each.authorities < 0",
            ),
        ),
    ),
    Mutant(
        name="start-not-counted",
        breaks="every start of a node is a life of its own, and the later one is known as such",
        caught_by=("lives-rise",),
        edits=(Edit("node.node:_next_boot", "boot = _last_boot(tx) + 1", "boot = max(1, _last_boot(tx))"),),
    ),
)
