"""Whole messages over a stream socket: of any size, in order, none lost."""

import select
import socket
import struct

LENGTH = struct.Struct("!Q")
CHUNK = 1 << 20


class Channel:
    """One end of a connection between two processes on one machine.

    Owns the socket and the bytes on their way, in and out. Neither `send` nor `receive` ever waits, so that one
    process can serve several channels; `wait` waits for any of them. A message is its length and its bytes: it needs no buffer
    of a fixed size at either end.

    is_open: False once the other end is gone.
    """

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        self._socket = connection
        self._outgoing, self._incoming = bytearray(), bytearray()
        self.is_open = True

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def is_flushed(self) -> bool:
        """Whether everything sent has left this process."""
        return not self._outgoing

    def close(self) -> None:
        self.is_open = False
        self._socket.close()

    def send(self, message: bytes) -> None:
        """Take `message` and send what the socket takes now; `flush` sends the rest."""
        self._outgoing += LENGTH.pack(len(message))
        self._outgoing += message
        self.flush()

    def flush(self) -> None:
        while self._outgoing and self.is_open:
            try:
                del self._outgoing[:self._socket.send(memoryview(self._outgoing)[:CHUNK])]
            except BlockingIOError:
                return
            except OSError:
                self.is_open = False

    def receive(self) -> list[bytes]:
        """The messages that have arrived in full; returns at once."""
        while self.is_open:
            try:
                chunk = self._socket.recv(CHUNK)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            self._incoming += chunk
            self.is_open = bool(chunk)
        messages = []
        while len(self._incoming) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._incoming)[0]
            if len(self._incoming) < end:
                break
            messages.append(bytes(self._incoming[LENGTH.size:end]))
            del self._incoming[:end]
        return messages


def wait(channels: list[Channel], seconds: float | None) -> None:
    """Sleep until one of the open channels can be read or takes more of what was sent, or the time is up."""
    poll = select.poll()
    for channel in channels:
        if channel.is_open:
            poll.register(channel, select.POLLIN | (0 if channel.is_flushed else select.POLLOUT))
    poll.poll(None if seconds is None else 1000 * seconds)
