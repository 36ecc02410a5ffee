// Control channel, served by a thread of its own, so that requests are received while the user's code does not return.
//
// An interrupt is first offered to the main thread, which ends the wait for the current code. If the main thread does not take
// it, it is running code, and signals break that. All other requests are answered by the main thread.

"use strict";

const { Worker, isMainThread, parentPort, workerData } = require("worker_threads");

// Time in which an event loop that is not blocked takes a message.
const ANSWER_MS = 100;
/** Positions in the memory that both threads share: numbers of the latest interrupt. */
const REQUESTED = 0;
const TAKEN = 1;

/** The main thread's end of the control channel. */
class Control {
  constructor(connection) {
    this.connection = connection;
    this.shared = new Int32Array(new SharedArrayBuffer(8));
  }

  /** Starts the thread; returns when the socket is bound. */
  start() {
    // The thread must not inherit the redirected output.
    this.worker = new Worker(__filename, { workerData: { connection: this.connection, shared: this.shared } });
    return new Promise((resolve, reject) => {
      this.worker.once("message", resolve);
      this.worker.once("error", reject);
    });
  }

  /** Calls one function with each request, and the other at each interrupt that was not taken before. */
  serve(onRequest, onInterrupt) {
    this.worker.on("message", ({ interrupt, frames }) => {
      if (interrupt === undefined) {
        onRequest(frames.map((frame) => Buffer.from(frame)));
      } else if (interrupt > Atomics.load(this.shared, TAKEN)) {
        this.take();
        onInterrupt();
      }
    });
  }

  send(frames) {
    this.worker.postMessage(frames);
  }

  /** Takes all interrupts that were requested; called when a signal broke the code. */
  take() {
    Atomics.store(this.shared, TAKEN, Atomics.load(this.shared, REQUESTED));
    Atomics.notify(this.shared, TAKEN);
  }

  /** Ends the thread; returns when it has ended. A thread that is terminated while its socket is open aborts the process. */
  close() {
    const ended = new Promise((resolve) => this.worker.once("exit", resolve));
    this.worker.postMessage(null);
    return ended;
  }
}

async function serve() {
  const { Wire, endpoint } = require("./wire");
  const packages = require("./packages");
  const { connection, shared } = workerData;
  const wire = new Wire(connection.key);
  const socket = new (packages("zeromq").Router)();
  await socket.bind(endpoint(connection, "control"));
  parentPort.on("message", (frames) => {
    if (frames === null) {
      socket.close();
      parentPort.close();
    } else {
      socket.send(frames.map((frame) => Buffer.from(frame)));
    }
  });
  parentPort.postMessage({});

  const interrupt = () => {
    const number = Atomics.add(shared, REQUESTED, 1) + 1;
    parentPort.postMessage({ interrupt: number });
    while (Atomics.wait(shared, TAKEN, number - 1, ANSWER_MS) === "timed-out") {
      process.kill(process.pid, "SIGINT");
    }
  };

  for await (const frames of socket) {
    const request = wire.decode(frames);
    if (request?.header.msg_type === "interrupt_request") {
      interrupt();
      // After this reply the interrupt concerns no later code.
      await socket.send(wire.encode("interrupt_reply", { status: "ok" }, request.header, request.identities));
    } else if (request !== null) {
      parentPort.postMessage({ frames });
    }
  }
}

if (!isMainThread) {
  serve();
}

module.exports = { Control };
