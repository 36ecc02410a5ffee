// Sockets of the kernel.

"use strict";

const { Control } = require("./control");
const packages = require("./packages");
const { Wire, endpoint } = require("./wire");

const zmq = packages("zeromq");

/** Bound sockets of one connection file. */
class Channels {
  constructor(connection) {
    this.connection = connection;
    this.wire = new Wire(connection.key);
    this.control = new Control(connection);
    this.shell = new zmq.Router();
    this.stdin = new zmq.Router();
    this.heartbeat = new zmq.Reply();
    // Without a limit nothing is dropped. Without a timeout each message is handed over at once, also while the code does
    // not return to the event loop.
    this.iopub = new zmq.Publisher({ sendHighWaterMark: 0, sendTimeout: 0, linger: 1000 });
    /** Header of the request that outputs belong to. */
    this.parent = null;
  }

  async bind() {
    for (const name of ["shell", "stdin", "iopub"]) {
      await this[name].bind(endpoint(this.connection, name));
    }
    await this.heartbeat.bind(endpoint(this.connection, "hb"));
    await this.control.start();
    this.echo();
  }

  async echo() {
    for await (const frames of this.heartbeat) {
      await this.heartbeat.send(frames);
    }
  }

  /** Publishes an output; it belongs to the latest execution unless another parent is given. */
  publish(type, content, parent = this.parent) {
    return this.iopub.send(this.wire.encode(type, content, parent));
  }

  /** Replies to a request on the socket that it came from. */
  reply(socket, request, content) {
    const type = request.header.msg_type.replace(/_request$/, "_reply");
    return socket.send(this.wire.encode(type, content, request.header, request.identities));
  }

  /** Closes the sockets; returns when no thread uses one. */
  close() {
    for (const socket of [this.shell, this.stdin, this.heartbeat, this.iopub]) {
      socket.close();
    }
    return this.control.close();
  }
}

module.exports = { Channels };
