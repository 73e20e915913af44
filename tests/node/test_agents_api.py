"""The decorator, and what a handler is called with and answers, all inside this process."""

from __future__ import annotations

import doctest
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import relaymesh
from node.agents import api
from node.agents.api import AgentSpec, Cancel, Context, Fail, Retry, Snooze, agent
from node.agents.handlers import Handler, describe_exception
from node.agents.wire import ERROR_CHARS_MAX, Run

REPOSITORY = Path(relaymesh.__file__).parent


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch):
    monkeypatch.setattr(api, "registered", {})


def run_of(payload=b"", parents=None):
    return Run("a", payload, parents or {}, "fence-1", 3, "tsk_1", "stp_1", "merge", "prod", "00-aa-bb-01")


def call(function, payload=b"", *, parents=None, loop="trio", result_bytes_max=1000):
    spec = AgentSpec(name="a", function=function, retry=Retry(), timeout_s=None, concurrency=None, loop=loop)
    return Handler(spec, result_bytes_max=result_bytes_max).run(run_of(payload, parents))


def test_a_decorated_function_stays_the_function_that_it_was():
    def double(text: str) -> str:
        return text * 2

    assert agent("double")(double) is double
    assert double("ab") == "abab"


def test_options_are_kept_with_the_name():
    @agent("x.y-z_1", retry=Retry(5, base_ms=10, max_ms=20), timeout_s=3, concurrency=2, loop="asyncio")
    async def handler(payload):
        return payload

    spec = api.registered["x.y-z_1"]
    assert (spec.retry.max_attempts, spec.retry.base_ms, spec.retry.max_ms) == (5, 10, 20)
    assert (spec.timeout_s, spec.concurrency, spec.loop) == (3.0, 2, "asyncio")


@pytest.mark.parametrize("name", ["", "a" * 65, "with space", "slash/", "ü", 5])
def test_a_name_outside_the_allowed_ones_is_refused(name):
    with pytest.raises(ValueError, match="not usable"):
        agent(name)


def test_a_name_of_exactly_64_characters_is_allowed():
    agent("a" * 64)(lambda payload: payload)


@pytest.mark.parametrize(
    "options",
    [{"timeout_s": 0}, {"timeout_s": -1}, {"timeout_s": 1e9}, {"concurrency": 0}, {"loop": "gevent"}],
)
def test_an_option_that_cannot_work_is_refused(options):
    with pytest.raises(ValueError):
        agent("a", **options)


@pytest.mark.parametrize("values", [(0,), (1001,), (1, 0), (1, 5, 4), (1, 1, 8 * 24 * 3600 * 1000), (1.5,)])
def test_a_retry_that_cannot_work_is_refused(values):
    with pytest.raises(ValueError):
        Retry(*values)


def test_the_examples_of_the_docstrings_are_true():
    tried = doctest.testmod(api)
    assert (tried.failed, tried.attempted > 5) == (0, True)


def test_two_functions_cannot_share_a_name_but_one_may_be_decorated_again():
    def first(payload):
        return payload

    agent("a")(first)
    agent("a")(first)
    with pytest.raises(ValueError, match="give each its own name"):
        agent("a")(lambda payload: payload)


def _none(): ...
def _three(a, b, c): ...
def _keyword_only(*, payload): ...
def _generator(payload):
    yield payload


@pytest.mark.parametrize("function", [_none, _three, _keyword_only, _generator])
def test_a_signature_that_cannot_be_called_is_refused_at_once(function):
    with pytest.raises(TypeError):
        agent("a")(function)


def test_text_is_the_default_payload():
    assert call(lambda payload: payload.upper(), "äb".encode()).result == "ÄB".encode()


def test_bytes_are_passed_as_they_are():
    def handler(payload: bytes) -> bytes:
        return payload[::-1]

    assert call(handler, b"\xff\x00").result == b"\x00\xff"


def test_other_annotations_get_decoded_json_of_that_type():
    def handler(payload: dict[str, int]) -> int:
        return sum(payload.values())

    assert call(handler, b'{"a": 1, "b": 2}').result == b"3"
    refused = call(handler, b'{"a": "one"}')
    assert refused.kind == "rejected"
    assert "$[...]" in refused.error


@dataclass
class Order:
    item: str
    count: int = 1


def test_a_dataclass_is_a_payload_and_a_result():
    def handler(ctx, payload: Order):
        return Order(payload.item, payload.count + 1)

    assert call(handler, b'{"item": "nut"}').result == b'{"item":"nut","count":2}'


def test_a_payload_type_that_json_cannot_become_is_refused_when_loaded():
    def handler(payload: 5): ...

    with pytest.raises(TypeError, match="payload type 5"):
        call(handler)


def test_payloads_that_do_not_decode_are_rejected_and_not_retried():
    def wants_json(payload: list): ...

    assert call(lambda payload: payload, b"\xff").kind == "rejected"
    assert call(wants_json, b"[1,").kind == "rejected"


def test_none_is_an_empty_result():
    assert call(lambda payload: None).result == b""


def test_the_context_holds_everything_about_the_attempt():
    seen = []

    def handler(ctx: Context, payload: bytes):
        seen.append(ctx)

    call(handler, b"p", parents={"one": b"1"})
    (ctx,) = seen
    assert (ctx.payload, dict(ctx.parents), ctx.fence, ctx.attempt) == (b"p", {"one": b"1"}, "fence-1", 3)
    assert (ctx.task_id, ctx.step_id, ctx.step_name) == ("tsk_1", "stp_1", "merge")
    assert (ctx.namespace, ctx.trace) == ("prod", "00-aa-bb-01")


def test_a_handler_may_want_only_the_context():
    def by_name(ctx):
        return ctx.parents["one"]

    def by_annotation(c: Context):
        return c.parents["one"]

    assert call(by_name, parents={"one": b"1"}).result == b"1"
    assert call(by_annotation, parents={"one": b"1"}).result == b"1"


def test_context_has_defaults_so_that_tests_can_make_one(capsys):
    Context(payload=b"x").log("for people")
    assert capsys.readouterr().err == "for people\n"


async def test_loops_are_started_by_the_handler_only():
    # Runs in a thread: this test has a Trio loop already.
    async def in_trio(payload):
        await trio.lowlevel.checkpoint()
        return "trio"

    async def in_asyncio(payload):
        import asyncio

        await asyncio.sleep(0)
        return "asyncio"

    assert (await trio.to_thread.run_sync(call, in_trio)).result == b"trio"
    assert (await trio.to_thread.run_sync(lambda: call(in_asyncio, loop="asyncio"))).result == b"asyncio"


def test_any_exception_is_a_failure_with_its_type_and_a_traceback_in_the_log(capsys):
    def handler(payload):
        raise ValueError("no good")

    done = call(handler)
    assert (done.kind, done.error) == ("failed", "ValueError: no good")
    log = capsys.readouterr().err
    assert "raise ValueError" in log
    assert "handlers.py" not in log


def test_leaving_by_sys_exit_is_a_failure_too():
    assert call(lambda payload: sys.exit(3)).error == "SystemExit: 3"


def test_fail_rejects_also_from_inside_a_nursery():
    async def handler(payload):
        async with trio.open_nursery() as nursery:

            async def child():
                raise Fail("never again")

            nursery.start_soon(child)

    def plain(payload):
        raise Fail("not this one")

    assert (call(handler).kind, call(handler).error) == ("rejected", "never again")
    assert (call(plain).kind, call(plain).error) == ("rejected", "not this one")


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [(Fail("why"), "rejected"), (Cancel("why"), "cancelled"), (Snooze(1.5, "why"), "snoozed")],
)
def test_a_verdict_is_returned_or_raised_also_from_inside_a_nursery(verdict, kind):
    def returns(payload):
        return verdict

    def raises(payload):
        raise verdict

    async def returns_in_trio(payload):
        return verdict

    async def raises_in_a_nursery(payload):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise verdict

    for handler in (returns, raises, returns_in_trio, raises_in_a_nursery):
        done = call(handler)
        assert (done.kind, done.error, done.result) == (kind, "why", b"")
        assert done.snooze_ms == (1500 if kind == "snoozed" else 0)


def test_of_several_verdicts_fail_goes_first_and_none_hides_an_error_but_fail():
    def raising(*errors):
        def handler(payload):
            raise BaseExceptionGroup("several", errors)

        return call(handler).kind

    assert raising(Snooze(1), Cancel("c"), Fail("f")) == "rejected"
    assert raising(Fail("f"), ValueError("v")) == "rejected"
    assert raising(Snooze(1), BaseExceptionGroup("inner", [Cancel("c")])) == "cancelled"
    assert raising(Snooze(1), ValueError("v")) == "failed"


@pytest.mark.parametrize("after_s", [0, 0.09, -1, float("nan"), float("inf"), 366 * 24 * 3600])
def test_a_snooze_that_cannot_be_is_refused(after_s):
    with pytest.raises(ValueError, match="after_s"):
        Snooze(after_s)
    Snooze(0.1), Snooze(365 * 24 * 3600)


def test_a_line_of_the_log_is_one_line_with_its_fields(capsys):
    Context().log("two\nlines", pages=3, source="the archive", empty="", odd='a="b"')
    expected = 'two\\nlines pages=3 source="the archive" empty="" odd="a=\\"b\\""'
    assert capsys.readouterr().err == expected + "\n"


def test_a_result_at_the_limit_passes_and_one_byte_more_is_rejected():
    assert call(lambda payload: b"x" * 10, result_bytes_max=10).kind == "success"
    refused = call(lambda payload: b"x" * 11, result_bytes_max=10)
    assert refused.kind == "rejected"
    assert "11 bytes, above the limit of 10" in refused.error


def test_a_result_that_json_cannot_hold_is_a_failure():
    assert call(lambda payload: object()).kind == "failed"


def test_memory_error_retires_the_host():
    def handler(payload):
        raise MemoryError

    assert call(handler).retire


@given(st.text(st.characters(exclude_categories=()), max_size=2000))
def test_the_text_of_an_error_is_bounded_and_can_always_be_sent(text):
    described = describe_exception(RuntimeError(text))
    assert described.startswith("RuntimeError")
    described.encode()
    assert len(described) <= ERROR_CHARS_MAX * 10  # an escaped lone surrogate takes up to ten characters


def test_an_exception_without_a_printable_text_is_still_described():
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError

    assert describe_exception(Broken()) == "Broken: (its text cannot be printed)"


@pytest.mark.slow
def test_importing_relaymesh_is_light():
    code = (
        "import sys, relaymesh; print(sorted({'trio', 'apsw', 'typer', 'msgspec', 'cryptography'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.slow
def test_what_submitters_use_is_loaded_when_it_is_used_and_the_sync_client_needs_no_loop():
    code = (
        "import sys, relaymesh; before = 'node.client' in sys.modules; relaymesh.Client, relaymesh.Workflow; "
        "print(before, sorted({'trio', 'apsw', 'typer', 'cryptography'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False []"


def test_every_public_name_is_there_and_no_other():
    assert {name for name in relaymesh.__all__ if getattr(relaymesh, name) is None} == set()
    assert set(relaymesh.__all__) <= set(dir(relaymesh))
    with pytest.raises(AttributeError, match="has no attribute 'Klient'"):
        _ = relaymesh.Klient


@pytest.mark.slow
def test_the_spawner_imports_only_the_standard_library():
    code = "import sys; sys.path.append(sys.argv[1]); import node.agents.spawner; print('trio' in sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code, str(REPOSITORY)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, ""])
def test_a_foreign_package_called_node_is_named_in_the_error(tmp_path, content):
    (tmp_path / "node").mkdir()
    if content is not None:
        (tmp_path / "node" / "__init__.py").write_text(content)
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; sys.path.append({str(REPOSITORY)!r}); import relaymesh"
    shown = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    if content is None:  # a folder without __init__.py loses to a real package, wherever that is on the path
        assert shown.returncode == 0, shown.stderr
    else:
        assert f"the name `node` means {tmp_path}/node/__init__.py" in shown.stderr
