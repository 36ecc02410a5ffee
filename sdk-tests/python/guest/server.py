"""HTTP server inside a sandbox, for tests of the edge. Standard library only: the guest has no internet access."""

import base64
import hashlib
import json
import socketserver
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# Set by `/release`: a stream then sends its second half.
released = threading.Event()
# Bytes of uploads that have arrived so far.
arrived = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self.websocket()
        elif self.path == "/stream":
            self.stream()
        elif self.path == "/release":
            released.set()
            self.reply({"released": True})
        elif self.path == "/arrived":
            self.reply({"arrived": arrived})
        elif self.path.startswith("/status/"):
            self.reply({"path": self.path}, status=int(self.path.rsplit("/", 1)[1]))
        else:
            self.echo(b"")

    def do_POST(self):
        self.echo(self.body())

    do_PUT = do_PATCH = do_DELETE = do_POST

    def body(self):
        global arrived
        arrived = 0
        parts = []
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                arrived += size
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length", 0))
            while left:
                part = self.rfile.read1(min(left, 65536))
                if not part:
                    break
                parts.append(part)
                left -= len(part)
                arrived += len(part)
        return b"".join(parts)

    def echo(self, body):
        seen = {name.lower(): value for name, value in self.headers.items()}
        digest = hashlib.sha256(body).hexdigest()
        self.reply({"method": self.command, "path": self.path, "headers": seen, "length": len(body), "sha256": digest})

    def reply(self, body, status=200):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def stream(self):
        """Sends the first half immediately, and the second after `/release`."""
        released.clear()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (b"first", b"second"):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.flush()
            if part == b"first":
                released.wait(60)
        self.wfile.write(b"0\r\n\r\n")

    def websocket(self):
        """Echoes every message until the client closes the connection (RFC 6455)."""
        accept = base64.b64encode(hashlib.sha1((self.headers["Sec-WebSocket-Key"] + GUID).encode()).digest())
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept.decode())
        self.end_headers()
        self.wfile.flush()
        while True:
            first, second = self.rfile.read(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", self.rfile.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.rfile.read(8))
            mask = self.rfile.read(4)
            text = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.rfile.read(length)))
            opcode = first & 0x0F
            head = bytes([0x80 | opcode])
            if len(text) < 126:
                head += bytes([len(text)])
            else:
                head += bytes([126]) + struct.pack(">H", len(text))
            self.wfile.write(head + text)
            self.wfile.flush()
            if opcode == 8:
                break
        self.close_connection = True

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


with Server(("0.0.0.0", int(sys.argv[1])), Handler) as server:
    print("listening", flush=True)
    server.serve_forever()
