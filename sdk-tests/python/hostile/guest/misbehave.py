"""Misbehaving server in a guest. Standard library only."""

import asyncio
import base64
import hashlib
import resource
import sys

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
# By path: bytes that are sent once, and bytes that are sent without end after them.
ENDLESS = {
    "/continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
    "/hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n" * 1000),
    "/head": (OK + b"X-Long: ", b"a" * 65536),
    "/headers": (OK, b"X-Many: 1\r\n" * 5000),
    "/extension": (CHUNKED + b"5;name=", b"a" * 65536),
    "/trailers": (CHUNKED + b"5\r\nhello\r\n0\r\n", b"X-Many: 1\r\n" * 5000),
    "/crumbs": (CHUNKED, b"1;extension=of-a-chunk\r\nx\r\n" * 2000),
}
# Number of requests for the path of smuggled requests.
smuggled = 0


async def serve(reader, writer):
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        await answer(head, reader, writer)
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.transport.abort()


async def answer(head, reader, writer):
    global smuggled
    path = head.split(" ", 2)[1]
    if path in ENDLESS:
        first, rest = ENDLESS[path]
        await send_for_ever(writer, first, rest)
    elif path == "/hang":
        await reader.read(1)
    elif path == "/unread":
        await asyncio.sleep(3600)
    elif path == "/pings":
        key = next(line.split(":", 1)[1].strip() for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key:"))
        accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
        opened = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        asyncio.get_running_loop().create_task(swallow(reader))
        await send_for_ever(writer, opened.encode(), b"\x89\x00" * 4096)
    else:
        smuggled += path == "/smuggled"
        body = str(smuggled).encode()
        writer.write(OK + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()


async def send_for_ever(writer, first, rest):
    writer.write(first)
    while True:
        writer.write(rest)
        await writer.drain()


async def swallow(reader):
    while await reader.read(65536):
        pass


async def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = await asyncio.start_server(serve, "0.0.0.0", int(sys.argv[1]), backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main())
