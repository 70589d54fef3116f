"""Events, changes and streams from the shell, against a real server."""

import hashlib
import json
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from typer.testing import CliRunner

from broker import Context, Service, ServiceBroker, action, event
from broker.__main__ import app
from tests.support.processes import Process, run_python, start, start_python
from tests.support.waiting import eventually
from tests.support.warm import warm_programs

pytestmark = pytest.mark.anyio


class Mail(Service):
    name = "mail"

    def __init__(self) -> None:
        self.heard: list[tuple[str | None, Any, dict[str, Any]]] = []

    @event("user.*")
    async def on_user(self, ctx: Context) -> None:
        self.heard.append((ctx.event, ctx.params, ctx.meta))

    @event("user.created", group="audit")
    async def on_audit(self, ctx: Context) -> None:
        self.heard.append(("audit", ctx.params, ctx.meta))


class Files(Service):
    """Streams in and out."""

    name = "files"

    @action
    async def copy(self, ctx: Context) -> Any:
        return ctx.stream

    @action
    async def digest(self, ctx: Context) -> dict[str, Any]:
        data = await ctx.stream.read()
        return {"size": len(data), "sha": hashlib.sha256(data).hexdigest(), "params": ctx.params}

    @action
    async def count(self, ctx: Context) -> list[Any]:
        return [value async for value in ctx.stream]

    @action
    async def numbers(self, ctx: Context, upto: int) -> Any:
        for number in range(upto):
            yield {"number": number}

    @action
    async def text(self, ctx: Context) -> Any:
        yield b"one\n\x1b[2J"
        yield b"two\xff\n"

    @action
    async def broken(self, ctx: Context) -> Any:
        yield b"a beginning"
        raise ValueError("and no end")


class Other(Service):
    name = "other"


class Shell:
    def __init__(self, url: str, namespace: str, mail: Mail, broker: ServiceBroker) -> None:
        self.environment = {"NATS_URL": url, "NAMESPACE": namespace}
        self.mail = mail
        self.broker = broker

    async def __call__(self, *arguments: str | Path) -> Process:
        return await run_python("-m", "broker", *arguments, environment=self.environment)

    def start(self, *arguments: str) -> Any:
        return start_python("-m", "broker", *arguments, environment=self.environment)

    def pipe(self, script: str) -> Any:
        """A script of sh, in which `$BROKER` is the command."""
        environment = {**self.environment, "BROKER": str(warm_programs() / "broker")}
        return start("sh", "-c", script, environment=environment, name=script)


@pytest.fixture
async def shell(nats_url: str, namespace: str) -> AsyncIterator[Shell]:
    mail = Mail()
    async with ServiceBroker("py-1", namespace=namespace, transporter=nats_url, services=[mail, Files()]) as broker:
        yield Shell(nats_url, namespace, mail, broker)


def output(process: Process) -> Any:
    assert process.returncode == 0, process.report("failed")
    (line,) = process.stdout
    return json.loads(line)


async def test_emit_sends_to_each_group_and_prints_the_groups(shell: Shell) -> None:
    told = output(await shell("emit", "user.created", '{"id": 1}', "-p", "name=Ada", "--meta", '{"user": 7}'))
    assert told == [{"group": "audit", "nodes": ["py-1"]}, {"group": "mail", "nodes": ["py-1"]}]
    payload = {"id": 1, "name": "Ada"}
    await eventually(lambda: len(shell.mail.heard) == 2)
    assert sorted(shell.mail.heard, key=str) == [
        ("audit", payload, {"user": 7}),
        ("user.created", payload, {"user": 7}),
    ]


async def test_emit_and_broadcast_may_name_groups(shell: Shell) -> None:
    for command in ("emit", "broadcast"):
        shell.mail.heard.clear()
        told = output(await shell(command, "user.created", "5", "--group", "audit"))
        assert told == [{"group": "audit", "nodes": ["py-1"]}]
        await eventually(lambda: shell.mail.heard == [("audit", 5, {})])


async def test_an_event_without_listeners_is_reported_as_such(shell: Shell) -> None:
    process = await shell("broadcast", "post.unheard")
    assert output(process) == []
    assert process.stderr == ["No node listens to 'post.unheard'."]


@pytest.mark.parametrize("command", ["nodes", "call files.numbers"])
async def test_a_command_that_finds_no_node_names_where_it_looked(shell: Shell, command: str) -> None:
    process = await shell(*command.split(), "--namespace", "empty")
    assert process.stderr[0] == f"No node answered in the namespace 'empty' at {shell.environment['NATS_URL']}."


async def test_listen_prints_events_as_lines_of_json_until_it_has_enough(shell: Shell) -> None:
    async with shell.start("listen", "user.**", "--count", "2") as process:
        await process.line("Listening to 'user.**'")
        await eventually(lambda: len([*shell.broker.registry.find_listeners("user.a.b")]) == 1, "the listener")
        await shell.broker.broadcast("user.a.b", {"id": 1})
        await shell.broker.emit("user.created", None)
        assert await process.wait() == 0
    first, second = (json.loads(line) for line in process.stdout)
    assert (first["name"], first["sender"], first["payload"]) == ("user.a.b", "py-1", {"id": 1})
    assert (second["name"], second["payload"]) == ("user.created", None)
    assert first["time"] <= second["time"]
    await eventually(lambda: ("user.created", None, {}) in shell.mail.heard, "nothing is taken away")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", [["listen", "**"], ["services", "--watch"]])
async def test_a_signal_ends_listening_and_watching_with_exit_code_0(
    shell: Shell, command: list[str], stop: int
) -> None:
    async with shell.start(*command) as process:
        if command[0] == "listen":
            await process.line("Listening")
        else:
            await process.line('"name":"files"')
        process.send_signal(signal.Signals(stop))
        assert await process.wait() == 0, process.report("ended otherwise")
    assert not any("Traceback" in line for line in process.stderr)


async def test_watching_prints_services_as_they_come_change_and_go(shell: Shell, nats_url: str, namespace: str) -> None:
    def is_(change: str, name: str, nodes: list[str]) -> Any:
        def holds(text: str) -> bool:
            line = json.loads(text)
            return (line["change"], line["name"], line["nodes"]) == (change, name, nodes)

        return holds

    async with shell.start("services", "--watch") as process:
        await process.line(is_("added", "mail", ["py-1"]))
        async with ServiceBroker("py-2", namespace=namespace, transporter=nats_url, services=[Mail()]):
            await process.line(is_("changed", "mail", ["py-1", "py-2"]))
        await process.line(is_("changed", "mail", ["py-1"]))
        await shell.broker.remove_service("files")
        await process.line(is_("removed", "files", []))
    assert "$node" not in {json.loads(line)["name"] for line in process.stdout}


async def test_internal_services_and_actions_are_listed_when_asked(shell: Shell) -> None:
    names = [row["name"] for row in output(await shell("services"))]
    assert names == ["files", "mail"]
    assert [row["name"] for row in output(await shell("services", "--all"))] == ["$node", *names]
    assert "$node.health" in [row["name"] for row in output(await shell("actions", "--all"))]
    assert (output(await shell("call", "$node.health")))["client"]["type"] == "python"


async def test_a_file_goes_through_an_action_byte_for_byte(shell: Shell, tmp_path: Path) -> None:
    source, target = tmp_path / "source.bin", tmp_path / "target.bin"
    source.write_bytes(random.Random(7).randbytes(3_000_000))
    process = await shell("call", "files.copy", "--stream-in", source, "--stream-out", target)
    assert process.returncode == 0, process.report("failed")
    assert target.read_bytes() == source.read_bytes()
    told = output(await shell("call", "files.digest", '{"a": 1}', "--stream-in", source))
    sha = hashlib.sha256(source.read_bytes()).hexdigest()
    assert told == {"size": 3_000_000, "sha": sha, "params": {"a": 1}}


async def test_params_come_from_a_file_that_is_too_large_for_a_command_line(shell: Shell, tmp_path: Path) -> None:
    document = {"routes": [{"body": "é" * 300} for _ in range(900)]}
    (tmp_path / "document.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
    digest = ["files.digest", "--stream-in", "/dev/null"]
    whole = output(await shell("call", *digest, f"@{tmp_path / 'document.json'}"))
    assert whole["params"] == document
    part = output(await shell("call", *digest, "-p", f"environment=@{tmp_path / 'document.json'}"))
    assert part["params"] == {"environment": document}
    script = f"$BROKER call files.digest --stream-in /dev/null - < {tmp_path / 'document.json'}"
    async with shell.pipe(script) as process:
        await process.wait()
    assert output(process) == whole


async def test_standard_input_and_output_are_streams(shell: Shell) -> None:
    async with shell.pipe("printf 'one\\ntwo' | $BROKER call files.copy --stream-in - | od -c") as process:
        assert await process.wait() == 0, process.report("failed")
    assert process.stdout[0].split()[1:] == ["o", "n", "e", r"\n", "t", "w", "o"]


async def test_values_go_in_and_come_out_as_lines_of_json(shell: Shell, tmp_path: Path) -> None:
    lines = '{"a": 1}\n\n[2, "é"]\n3\n'
    (tmp_path / "values.ndjson").write_text(lines, encoding="utf-8")
    (tmp_path / "values.txt").write_text(lines, encoding="utf-8")
    expected = [{"a": 1}, [2, "é"], 3]
    assert output(await shell("call", "files.count", "--stream-in", tmp_path / "values.ndjson")) == expected
    assert output(await shell("call", "files.count", "--stream-in", tmp_path / "values.txt", "--values")) == expected
    process = await shell("call", "files.numbers", "-p", "upto=3")
    assert [json.loads(line) for line in process.stdout] == [{"number": 0}, {"number": 1}, {"number": 2}]


async def test_what_goes_wrong_with_a_stream_is_one_line_and_exit_code_1(shell: Shell, tmp_path: Path) -> None:
    bad = tmp_path / "bad.ndjson"
    bad.write_text('{"a": 1}\nno json\n', encoding="utf-8")
    for arguments, words in (
        (["files.count", "--stream-in", bad], "Line 2"),
        (["files.count", "--stream-in", tmp_path / "nowhere"], "No such file"),
        (["files.numbers", "-p", "upto=1", "--stream-out", tmp_path], "Is a directory"),
        (["files.broken"], "and no end"),
        (["files.count", "--stream-in", "/dev/null", "--values", "--stream-out", tmp_path / "out"], "no file"),
    ):
        process = await shell("call", *arguments)
        assert process.returncode == 1, arguments
        errors = [line for line in process.stderr if line.startswith("Error:")]
        assert len(errors) == 1, process.report("told otherwise")
        assert words in errors[0]
        assert not any("Traceback" in line for line in process.stderr)


async def test_results_are_utf_8_in_any_locale(shell: Shell, tmp_path: Path) -> None:
    shell.environment["PYTHONIOENCODING"] = "latin-1"
    (tmp_path / "values.ndjson").write_text('"é 🔄"\n', encoding="utf-8")
    assert output(await shell("call", "files.count", "--stream-in", tmp_path / "values.ndjson")) == ["é 🔄"]


async def test_a_reader_that_goes_away_causes_no_crash(shell: Shell) -> None:
    async with shell.pipe("$BROKER call files.numbers -p upto=100000 | head -n 1") as process:
        assert await process.wait() == 0
    assert process.stdout == ['{"number":0}']
    assert process.stderr == []


async def test_listening_ends_when_its_reader_has_gone_away(shell: Shell) -> None:
    async with shell.pipe("{ $BROKER listen 'user.*'; echo $? >&2; } | head -n 1") as process:
        await process.line("Listening")
        await eventually(lambda: len([*shell.broker.registry.find_listeners("user.a")]) == 2, "the listener")
        with anyio.fail_after(30):
            while process.stderr[-1] != "0":  # until the end, as events without a reader show
                await shell.broker.broadcast("user.a", {"id": 1})
                await anyio.sleep(0.02)
        assert await process.wait() == 0
    assert [json.loads(line)["name"] for line in process.stdout] == ["user.a"]
    assert process.stderr == ["Listening to 'user.*'; Ctrl-C ends it.", "0"]


async def test_watching_ends_when_its_reader_has_gone_away(shell: Shell) -> None:
    async with shell.pipe("{ $BROKER services --watch; echo $? >&2; } | head -n 1") as process:
        await process.line('"name":"files"')
        await shell.broker.add_service(Other())  # a change without a reader
        assert await process.wait() == 0
    assert process.stderr == ["0"]


@pytest.mark.parametrize("command", ["nodes", "call files.numbers -p upto=3", "services --watch"])
async def test_an_output_that_cannot_be_written_is_one_line_and_exit_code_1(shell: Shell, command: str) -> None:
    async with shell.pipe(f"$BROKER {command} > /dev/full") as process:
        assert await process.wait() == 1, process.report("ended otherwise")
    (line,) = process.stderr
    assert line.startswith("Error: ")
    assert "No space left" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["emit"],
        ["emit", "x", "{"],
        ["emit", "x", "-p", "nothing"],
        ["broadcast", "x", "--meta", "[1]"],
        ["listen"],
        ["listen", "x", "--count", "-1"],
        ["call", "a.b", "--timeout", "-1"],
        ["call", "a.b", "@no-such-file"],
        ["call", "a.b", "-", "--stream-in", "-"],
        ["ping", "--timeout", "-1"],
        ["nodes", "--protocol", "6"],
        ["nodes", "--nats-url", "redis://127.0.0.1"],
        ["services", "--watch", "--namespace", "a b"],
        ["run", "json", "--start-timeout", "-1"],
    ],
)
def test_misuse_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_an_option_in_the_environment_that_no_broker_takes_is_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_REQUEST_TIMEOUT", "soon")
    result = CliRunner().invoke(app, ["nodes"])
    assert result.exit_code == 2
    assert "BROKER_REQUEST_TIMEOUT must be a number" in result.output


async def test_variables_of_other_programs_name_the_cluster_too(shell: Shell) -> None:
    url, namespace = shell.environment["NATS_URL"], shell.environment["NAMESPACE"]
    shell.environment = {"BROKER_TRANSPORTER": url, "BROKER_NAMESPACE": namespace, "BROKER_NAMSPACE": "misspelt"}
    process = await shell("nodes")
    assert [node["id"] for node in output(process)] == ["py-1"]
    [line] = process.stderr
    assert line.endswith(
        "BROKER_NAMSPACE is set and ignored: the broker has no such option. Did you mean BROKER_NAMESPACE?"
    )


async def test_progress_is_shown_on_a_terminal_only(shell: Shell, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"x" * 2_000_000)
    command = f"$BROKER call files.digest --stream-in {source}"
    async with shell.pipe(command) as process:
        assert await process.wait() == 0
    assert process.stderr == []
    drawn = tmp_path / "terminal"
    async with shell.pipe(f'TERM=xterm script -qec "{command}" {drawn} > {drawn}.out') as process:
        assert await process.wait() == 0, process.report("failed")
    assert "Sending" in drawn.read_text(errors="replace")
    await anyio.lowlevel.checkpoint()


async def test_a_stream_that_a_terminal_shows_is_shown_as_text_without_progress(shell: Shell, tmp_path: Path) -> None:
    for shown, expected in ("text", "one\n\\x1b[2Jtwo\\xff\n"), ("numbers -p upto=2", '{"number":0}\n{"number":1}\n'):
        drawn = tmp_path / "terminal"
        command = f"$BROKER call files.{shown}"
        async with shell.pipe(f'TERM=xterm script -qec "{command}" {drawn} > {drawn}.out') as process:
            assert await process.wait() == 0, process.report("failed")
        assert expected in drawn.read_text()
        assert "Receiving" not in drawn.read_text()


async def test_a_terminal_gets_no_control_characters_that_peers_have_chosen(shell: Shell, tmp_path: Path) -> None:
    hostile = "\x1b[2J\u202e"
    await shell.broker.add_service(type("Hostile", (Mail,), {"name": hostile})())
    drawn = tmp_path / "terminal"
    async with shell.pipe(f'TERM=xterm COLUMNS=99 script -qec "$BROKER services" {drawn} > {drawn}.out') as process:
        assert await process.wait() == 0, process.report("failed")
    shown = drawn.read_text()
    assert r"\x1b[2J\u202e" in shown
    assert not any(one in shown for one in ("\x1b[2J", "\u202e"))
