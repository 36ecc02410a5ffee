// Standard output and standard error as messages.

"use strict";

const { StringDecoder } = require("string_decoder");

// Text is sent at once after a pause of this length; otherwise it is collected, so that a loop of small outputs becomes few
// messages.
const COLLECT_MS = 50;
// Collected text is sent when it reaches this length.
const COLLECT_LENGTH_MAX = 64 * 1024;

/** Collector of the text that code writes. */
class Output {
  constructor(channels) {
    this.channels = channels;
    this.name = "stdout";
    this.text = "";
    this.sentAt = -Infinity;
    this.timer = null;
  }

  /** Redirects `process.stdout` and `process.stderr`, and with them `console`. */
  install() {
    for (const name of ["stdout", "stderr"]) {
      const decoder = new StringDecoder("utf8");
      process[name].write = (chunk, encoding, callback) => {
        this.write(name, typeof chunk === "string" ? chunk : decoder.write(Buffer.from(chunk)));
        const done = typeof encoding === "function" ? encoding : callback;
        if (typeof done === "function") {
          process.nextTick(done);
        }
        return true;
      };
    }
  }

  write(name, text) {
    if (text === "") {
      return;
    }
    if (name !== this.name) {
      this.flush();
      this.name = name;
    }
    this.text += text;
    if (this.text.length >= COLLECT_LENGTH_MAX || performance.now() - this.sentAt >= COLLECT_MS) {
      this.flush();
    } else {
      this.timer ??= setTimeout(() => this.flush(), COLLECT_MS);
    }
  }

  /** Makes the next text be sent at once; called when a cell starts. */
  expect() {
    this.flush();
    this.sentAt = -Infinity;
  }

  /** Sends what was collected; called before every other message, to keep the order. */
  flush() {
    clearTimeout(this.timer);
    this.timer = null;
    if (this.text === "") {
      return;
    }
    const content = { name: this.name, text: this.text.toWellFormed?.() ?? this.text };
    this.text = "";
    this.sentAt = performance.now();
    this.channels.publish("stream", content);
  }
}

module.exports = { Output };
