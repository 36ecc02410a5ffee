"""A kernel whose code is a script of its messages, for messages that no real kernel sends."""

import hashlib
import hmac
import json
import sys
import uuid

import zmq

connection = json.load(open(sys.argv[1]))
context = zmq.Context()


def bind(kind, name):
    socket = context.socket(kind)
    socket.bind(f"tcp://{connection['ip']}:{connection[name + '_port']}")
    return socket


shell = bind(zmq.ROUTER, "shell")
control = bind(zmq.ROUTER, "control")
iopub = bind(zmq.PUB, "iopub")
key = connection["key"].encode()


def parts(kind, content, parent, signed=True, header=None):
    if header is None:
        header = json.dumps({"msg_id": str(uuid.uuid4()), "msg_type": kind, "version": "5.3"}).encode()
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    body = [header, parent, b"{}", content]
    mac = hmac.new(key if signed else b"other", digestmod=hashlib.sha256)
    for part in body:
        mac.update(part)
    return [b"<IDS|MSG>", mac.hexdigest().encode(), *body]


while True:
    identity, _, _, header, _, _, content = shell.recv_multipart()[:7]
    request = json.loads(header)

    def publish(kind, content, parent=None, **options):
        iopub.send_multipart([b"topic", *parts(kind, content, header if parent is None else parent, **options)])

    def raw(*frames):
        iopub.send_multipart(frames)

    def reply(content, kind="execute_reply", **options):
        shell.send_multipart([identity, *parts(kind, content, header, **options)])

    def busy():
        publish("status", {"execution_state": "busy"})

    def accept(count=1):
        publish("execute_input", {"code": "", "execution_count": count})

    def idle():
        publish("status", {"execution_state": "idle"})

    def finish():
        reply({"status": "ok", "execution_count": 1})
        idle()

    if request["msg_type"] == "kernel_info_request":
        busy()
        reply({"status": "ok"}, kind="kernel_info_reply")
        idle()
    elif request["msg_type"] == "execute_request":
        exec(json.loads(content)["code"], globals())
