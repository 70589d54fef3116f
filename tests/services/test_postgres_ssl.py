"""Certificates: what is wrong with one, or with the address that names it, is told so that one finds the mistake."""

import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.environments_store.database.postgres import PostgresDatabase
from services.environments_store.defaults import DatabaseSettings
from services.environments_store.errors import DatabaseError, DatabaseUnavailableError

pytestmark = pytest.mark.anyio

PASSWORD = "secret-of-the-test"


def certificate(path: Path, address: str) -> Path:
    """A file with a certificate for this address, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


@asynccontextmanager
async def server_with(file: Path) -> AsyncIterator[int]:
    """The port of a server that shows this certificate to whoever asks for SSL, and ends there."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)

    async def serve(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"S")
            try:
                await TLSStream.wrap(stream, server_side=True, ssl_context=context)
            except (ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream):
                return

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield listener.extra(SocketAttribute.local_port)
        group.cancel_scope.cancel()


async def refusal(kind: type[Exception], parameters: str, port: int = 1) -> str:
    """What is said of an address with these parameters."""
    database = PostgresDatabase(f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/it?{parameters}", DatabaseSettings())
    await database.open()
    with pytest.raises(kind) as caught:
        await database.fetch("SELECT 1")
    await database.close()
    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_certificate_of_an_unknown_authority_is_told_with_the_parameter_that_names_one(tmp_path: Path) -> None:
    shown, known = certificate(tmp_path / "shown", "127.0.0.1"), certificate(tmp_path / "known", "127.0.0.1")
    async with server_with(shown) as port:
        text = await refusal(DatabaseUnavailableError, f"sslmode=verify-full&sslrootcert={known}", port)
    assert "the certificate of the server is not accepted" in text
    assert "`sslrootcert`" in text


async def test_a_certificate_for_another_host_is_told_as_that(tmp_path: Path) -> None:
    shown = certificate(tmp_path / "shown", "127.0.0.2")
    async with server_with(shown) as port:
        text = await refusal(DatabaseUnavailableError, f"sslmode=verify-full&sslrootcert={shown}", port)
    assert "not valid for '127.0.0.1'" in text


@pytest.mark.parametrize("parameter", ["sslrootcert", "sslcert"])
async def test_a_file_that_is_not_there_is_named_and_not_waited_for(tmp_path: Path, parameter: str) -> None:
    text = await refusal(DatabaseError, f"sslmode=verify-full&{parameter}={tmp_path / 'missing.pem'}")
    assert f"the file '{tmp_path / 'missing.pem'}' of `{parameter}` cannot be read" in text


async def test_the_system_s_authorities_are_asked_for_by_their_file(tmp_path: Path) -> None:
    assert "ca-certificates.crt" in await refusal(DatabaseError, "sslmode=verify-full&sslrootcert=system")


async def test_a_file_that_holds_no_certificate_leads_to_the_parameters(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    text = await refusal(DatabaseUnavailableError, f"sslmode=verify-full&sslrootcert={tmp_path / 'empty.pem'}")
    assert "`sslrootcert`" in text


async def test_a_mode_that_there_is_not_is_told_with_those_that_there_are_and_not_waited_for() -> None:
    assert "verify-full" in await refusal(DatabaseError, "sslmode=bogus")


async def test_a_missing_default_file_of_authorities_is_told_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "root.crt" in await refusal(DatabaseError, "sslmode=verify-full")
