// Messages of the Jupyter protocol as frames: identities, delimiter, signature, header, parent header, metadata, content.

"use strict";

const crypto = require("crypto");

const DELIMITER = "<IDS|MSG>";
const PROTOCOL_VERSION = "5.3";
const PARTS = 4;

/** Returns the address of a channel. */
function endpoint(connection, name) {
  const { transport, ip } = connection;
  return `${transport}://${ip}${transport === "ipc" ? "-" : ":"}${connection[`${name}_port`]}`;
}

/** Signs, writes and reads the messages of one connection. */
class Wire {
  constructor(key) {
    this.key = key;
    this.session = crypto.randomUUID();
  }

  /** Returns the frames of a new message. */
  encode(type, content, parent, identities = []) {
    const header = {
      msg_id: crypto.randomUUID(),
      session: this.session,
      username: "kernel",
      date: new Date().toISOString(),
      msg_type: type,
      version: PROTOCOL_VERSION,
    };
    const parts = [header, parent ?? {}, {}, content].map((part) => Buffer.from(JSON.stringify(part)));
    return [...identities, DELIMITER, this.sign(parts), ...parts];
  }

  /** Returns the message in these frames, or null if it is malformed or has a wrong signature. */
  decode(frames) {
    const delimiter = frames.findIndex((frame) => frame.toString() === DELIMITER);
    const parts = frames.slice(delimiter + 2, delimiter + 2 + PARTS);
    if (delimiter < 0 || parts.length < PARTS) {
      return null;
    }
    const [expected, signature] = [Buffer.from(this.sign(parts)), frames[delimiter + 1]];
    if (expected.length !== signature.length || !crypto.timingSafeEqual(expected, signature)) {
      return null;
    }
    try {
      const [header, parent, metadata, content] = parts.map((part) => JSON.parse(part.toString()));
      return { identities: frames.slice(0, delimiter), header, parent, metadata, content };
    } catch {
      return null;
    }
  }

  /** Returns the signature in hexadecimal digits; it is empty if the connection has no key. */
  sign(parts) {
    if (!this.key) {
      return "";
    }
    const hmac = crypto.createHmac("sha256", this.key);
    parts.forEach((part) => hmac.update(part));
    return hmac.digest("hex");
  }
}

module.exports = { Wire, endpoint, PROTOCOL_VERSION };
