"""Two processes, two models, one message.

    python examples/two_processes.py passage.txt "Where was Ada born?" --wire WIRE --receiver qwen

This process has the text and the encoder. It starts another one, which has the receiver and its
adapter and listens on 127.0.0.1; sends it the message and the question, never the text; and prints
the answer that comes back, and what the other process had.
"""

import argparse
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

_LENGTH = struct.Struct("!Q")
_MOST_BYTES = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("question")
    parser.add_argument("--wire", required=True)
    parser.add_argument("--receiver", required=True)
    parser.add_argument("--reader-wire", help="where the other process finds the wire")
    parser.add_argument("--ratio", type=float, default=8)
    options = parser.parse_args()
    reader = subprocess.Popen(
        [sys.executable, __file__, "--read", options.reader_wire or options.wire, options.receiver],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        payload = encode(options.text, options.wire, options.ratio)
        port = int(reader.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            send(connection, payload)
            send(connection, options.question.encode())
            outcome = json.loads(receive(connection))
        print(json.dumps({**outcome, "message_bytes": len(payload)}))
    finally:
        reader.terminate()
        reader.wait()


def encode(text: Path, wire: str, ratio: float) -> bytes:
    from latentwire import Wire

    (latents,) = Wire.from_pretrained(wire).encode([text.read_text().strip()], ratio)
    return latents.to_bytes("int8")


def read(wire: str, name: str) -> None:
    """The other process: answers one question about one message."""
    from latentwire import Latents, open_receiver

    receiver = open_receiver(wire, name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
    with connection:
        payload, question = receive(connection), receive(connection).decode()
        (answer,) = receiver.answer(Latents.from_bytes(payload), [question])
        outcome = {
            "answer": answer,
            "received_bytes": len(payload) + len(question.encode()),
            "has_encoder": "latentwire.wire.encoder" in sys.modules,
        }
        send(connection, json.dumps(outcome).encode())


def send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(message)) + message)


def receive(connection: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > _MOST_BYTES:
        raise ValueError(f"a message of {length} bytes is more than {_MOST_BYTES}")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        block = connection.recv(min(1 << 20, length - len(received)))
        if not block:
            raise ConnectionError("the other side left")
        received += block
    return bytes(received)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read(*sys.argv[2:])
    else:
        main()
