#!/usr/bin/python3
"""Replacement of the guest daemon: reports success to the host, and sends log lines without end."""

import socketserver
from http.server import BaseHTTPRequestHandler

LINES = b'{"seq":1}\n' * 6000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if not self.path.startswith("/logs"):
            self.send_response(204)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(LINES), LINES))

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server(("0.0.0.0", 49983), Handler).serve_forever()
