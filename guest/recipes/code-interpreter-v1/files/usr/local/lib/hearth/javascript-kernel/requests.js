// Replies to the requests of clients.

"use strict";

const { compile, load } = require("./cell");
const { bundle } = require("./display");
const { EXIT, describe } = require("./evaluator");
const { PROTOCOL_VERSION } = require("./wire");

const INFORMATION = {
  status: "ok",
  protocol_version: PROTOCOL_VERSION,
  implementation: "hearth-javascript",
  implementation_version: "1.0.0",
  banner: `Node.js ${process.version}`,
  help_links: [],
  language_info: {
    name: "javascript",
    version: process.versions.node,
    mimetype: "text/javascript",
    file_extension: ".js",
  },
};

/** Loops that receive and answer requests; cells run one at a time, in their order. */
class Requests {
  constructor({ channels, output, display, evaluator, exit }) {
    Object.assign(this, { channels, output, display, evaluator, exit });
    this.count = 0;
  }

  start() {
    const { shell, control, wire } = this.channels;
    this.evaluator.onBreak = () => control.take();
    this.evaluator.onExit = () => this.stop(this.evaluator.exitCode);
    this.channels.publish("status", { execution_state: "starting" });
    control.serve(
      (frames) => this.handle(wire.decode(frames), control),
      () => this.evaluator.interrupt(),
    );
    this.serve(shell);
  }

  async serve(socket) {
    for await (const frames of socket) {
      const request = this.channels.wire.decode(frames);
      if (request !== null) {
        await this.handle(request, socket);
      }
    }
  }

  async handle(request, socket) {
    const status = (state) => this.channels.publish("status", { execution_state: state }, request.header);
    status("busy");
    const content = await this.answer(request);
    this.output.flush();
    if (content !== null) {
      await this.channels.reply(socket, request, content);
    }
    status("idle");
    if (request.header.msg_type === "shutdown_request") {
      this.stop(0);
    } else if (this.evaluator.exitCode !== null) {
      this.stop(this.evaluator.exitCode);
    }
  }

  /** Returns the content of the reply, or null for an unknown request. */
  async answer({ header, content }) {
    switch (header.msg_type) {
      case "kernel_info_request":
        // The compiler is loaded while the client does not wait.
        setImmediate(load);
        return INFORMATION;
      case "execute_request":
        return this.execute(header, content);
      case "shutdown_request":
        return { status: "ok", restart: content.restart === true };
      case "complete_request":
        return { status: "ok", matches: [], cursor_start: content.cursor_pos, cursor_end: content.cursor_pos, metadata: {} };
      case "inspect_request":
        return { status: "ok", found: false, data: {}, metadata: {} };
      case "is_complete_request":
        return { status: "unknown" };
      case "history_request":
        return { status: "ok", history: [] };
      case "comm_info_request":
        return { status: "ok", comms: {} };
      default:
        return null;
    }
  }

  async execute(header, { code, silent = false, store_history: stores = true }) {
    this.output.expect();
    this.channels.parent = header;
    const source = String(code ?? "");
    const filename = `Cell [${this.count + 1}]`;
    let cell = null;
    let failure = null;
    try {
      cell = compile(source);
    } catch (error) {
      failure = error;
    }
    if (!silent) {
      this.count += stores && !cell?.isEmpty ? 1 : 0;
      this.channels.publish("execute_input", { code: source, execution_count: Math.max(this.count, 1) });
    }
    try {
      if (failure !== null) {
        throw failure;
      }
      if (!cell.isEmpty) {
        await this.show(await this.evaluator.run(cell, filename), silent);
      }
      return this.success();
    } catch (error) {
      return error === EXIT ? this.success() : this.failure(error);
    }
  }

  async show(value, silent) {
    if (silent || value === undefined) {
      return;
    }
    const data = await this.evaluator.interruptible(() => bundle(value));
    this.display.send("execute_result", { execution_count: this.count, data, metadata: {} });
  }

  success() {
    const exits = this.evaluator.exitCode !== null;
    const payload = exits ? [{ source: "ask_exit", keepkernel: false }] : [];
    return { status: "ok", execution_count: this.count, payload, user_expressions: {} };
  }

  failure(error) {
    const { name, message, stack } = describe(error);
    const content = { ename: name, evalue: message, traceback: [stack] };
    this.display.send("error", content);
    return { status: "error", execution_count: this.count, ...content };
  }

  /** Ends the process. Closed sockets deliver their last messages first, within a second. */
  stop(code) {
    this.output.flush();
    this.channels.close().then(() => this.exit(code));
  }
}

module.exports = { Requests };
