"""Compression and encryption of packets: the vectors of real nodes, and what is refused (protocol §13)."""

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import BrokerOptionsError, InvalidPacketDataError
from broker.protocol.codecs import make_codec
from broker.protocol.codecs.json import JSONCodec
from broker.protocol.packets import Heartbeat
from broker.protocol.transforms import Compression, Encryption, Method, Transform

PACKET = b'{"cpu":13,"ver":"4","sender":"node-1"}'
KEY, IV = "12345678901234567890123456789012", "1234567890123456"

COMPRESSED: dict[Method, str] = {
    "deflate": "01789c4b4c1c05a360148c540000f3788410",
    "deflateRaw": "014b4c1c05a360148c540000",
    "gzip": "011f8b08000000000000034b4c1c05a360148c540000b997557c00040000",
}
ENCRYPTED = [
    (
        Encryption(KEY, iv=IV),
        "8a713e31e9b12d4535ae2d4a16d514ddad0c667ea748631a09d9b8d65cf2c827e5bd1a4b4b965c5d5f0a263b17a02a9e",
    ),
    (
        Encryption("secret-password"),
        "3de483db8935c6c9a13a73983cdf8d7cce1c0408d5a1796de227a98f6315db3d77b656822bb773d5fc8c49ca9138fcde",
    ),
    (
        Encryption(KEY, "aes-256-ecb"),
        "7acdd8c800c43d3495c0e11ca32958919c0dc13c66089f866c32201aff12c312c11336ea6a4302fcbc12945b3f3e2e78",
    ),
]
TRANSFORMS: list[Transform] = [
    *(Compression(method, threshold) for method in COMPRESSED for threshold in (None, 50)),
    *(encryption for encryption, _ in ENCRYPTED),
    Encryption(b"k" * 16, "AES-128-CBC", b"i" * 16),
    Encryption("any password", "aes-192-ecb", derive_key=True),
]


@pytest.mark.parametrize("method", COMPRESSED)
def test_c85_compression_vectors_decode_and_encode(method: Method) -> None:
    plain, vector = b"a" * 1024, bytes.fromhex(COMPRESSED[method])
    assert Compression(method).decode(vector) == plain
    encoded = Compression(method).encode(plain)
    assert Compression(method).decode(encoded) == plain
    assert encoded == vector or zlib.ZLIB_RUNTIME_VERSION != "1.2.13", "zlib may be built with another compressor"


def test_c85_small_packets_are_sent_behind_a_byte_of_zero() -> None:
    vector = bytes.fromhex("007b22637075223a31332c22766572223a2234222c2273656e646572223a226e6f64652d31227d")
    assert Compression().encode(PACKET) == vector
    assert Compression("gzip").decode(vector) == PACKET


@pytest.mark.parametrize(
    ("threshold", "plain", "compressed"),
    [("1kb", 1023, 1024), (100, 99, 100), ("0.5KB", 511, 512), ("2 kb", 2047, 2048), ("7", 6, 7)],
)
def test_c85_packets_from_the_threshold_on_are_compressed(threshold: int | str, plain: int, compressed: int) -> None:
    transform = Compression(threshold=threshold)
    assert transform.encode(b"a" * plain)[0] == 0
    assert transform.encode(b"a" * compressed)[0] == 1
    assert Compression(threshold=None).encode(b"a")[0] == 1
    assert Compression(threshold="1mb").encode(b"a" * 2**20)[0] == 1


@pytest.mark.parametrize(("encryption", "vector"), ENCRYPTED, ids=["key and iv", "password", "ecb"])
def test_c85_encryption_vectors_decode_and_encode(encryption: Encryption, vector: str) -> None:
    assert encryption.encode(PACKET).hex() == vector
    assert encryption.decode(bytes.fromhex(vector)) == PACKET


@pytest.mark.parametrize("transform", TRANSFORMS)
@given(data=st.binary(max_size=200))
def test_c85_every_packet_comes_back(transform: Transform, data: bytes) -> None:
    assert transform.decode(transform.encode(data)) == data


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("limit", [200, 4096, 100_001, 1_048_576])
def test_what_is_said_to_have_room_fits(transform: Transform, limit: int) -> None:
    room = transform.room(limit)
    assert limit - limit // 100 - 70 < room
    assert len(transform.encode(random.Random(limit).randbytes(room))) <= limit


def test_c85_the_first_listed_is_closest_to_the_wire() -> None:
    encryption, compression = Encryption(KEY, iv=IV), Compression(threshold=None)
    codec = make_codec("JSON", [encryption, compression])
    packet = Heartbeat(ver="4", sender="node-1", cpu=13)
    plain = JSONCodec().encode(packet)
    assert codec.encode(packet) == encryption.encode(compression.encode(plain))
    assert codec.decode("HEARTBEAT", encryption.encode(compression.encode(plain))) == packet
    with pytest.raises(InvalidPacketDataError):
        codec.decode("HEARTBEAT", compression.encode(encryption.encode(plain)))


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01x\x9c", b"\x02garbage", b"\x01" + zlib.compress(PACKET)[:-4]])
def test_c85_what_cannot_be_decompressed_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="it"):
        Compression().decode(data)


def test_c85_any_flag_but_zero_means_compressed() -> None:
    assert Compression().decode(b"\x07" + zlib.compress(PACKET)) == PACKET


def test_a_small_packet_that_would_fill_the_memory_is_refused() -> None:
    compressor = zlib.compressobj()
    first, again = (compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    bomb = b"\x01" + first + again * 199
    assert len(bomb) < 2**18
    with pytest.raises(ValueError, match="bytes when decompressed"):
        Compression().decode(bomb)


@pytest.mark.parametrize("encryption", [encryption for encryption, _ in ENCRYPTED], ids=["iv", "password", "ecb"])
@pytest.mark.parametrize("data", [b"", b"x", b"x" * 32, b"x" * 33, bytes(16)])
def test_c85_what_was_encrypted_with_another_key_is_refused(encryption: Encryption, data: bytes) -> None:
    with pytest.raises(ValueError, match="decrypted"):
        encryption.decode(data)


def test_c85_a_packet_that_cannot_be_decoded_is_named_as_such() -> None:
    codec = make_codec("JSON", [Encryption("a password")])
    with pytest.raises(InvalidPacketDataError) as caught:
        codec.decode("REQ", PACKET)
    assert caught.value.data == {
        "command": "REQ",
        "reason": "it cannot be decrypted: its size is not a multiple of a block",
        "size": len(PACKET),
    }
    assert codec.decode_address(PACKET) is None


def test_options_that_do_not_fit_are_refused_with_what_would() -> None:
    with pytest.raises(BrokerOptionsError, match=r"'brotli' is not known\. Known are: deflate, deflateRaw, gzip"):
        Compression("brotli")  # type: ignore[arg-type]  # the mistake of a user
    for threshold in ("many", -1, True, "5xb", "kb"):
        with pytest.raises(BrokerOptionsError, match="number of bytes or such as '1kb'"):
            Compression(threshold=threshold)
    with pytest.raises(BrokerOptionsError, match=r"'rot13' is not known"):
        Encryption("x", "rot13")
    with pytest.raises(BrokerOptionsError, match="needs a password"):
        Encryption("")
    with pytest.raises(BrokerOptionsError, match="must have 32 bytes, not 5") as caught:
        Encryption("short", iv=IV)
    assert "short" not in str(caught.value)
    with pytest.raises(BrokerOptionsError, match="iv of 'aes-256-cbc' must have 16 bytes"):
        Encryption(KEY, iv="short")
    with pytest.raises(BrokerOptionsError, match="must have 32 bytes, not 1"):
        Encryption("k", "aes-256-ecb")
