// Representations of values.

"use strict";

const util = require("util");

/** MIME types of the builders `$$.html(...)` and so on, and of the methods of objects. */
const BUILDERS = {
  text: "text/plain",
  html: "text/html",
  markdown: "text/markdown",
  latex: "text/latex",
  svg: "image/svg+xml",
  png: "image/png",
  jpeg: "image/jpeg",
  json: "application/json",
};
const METHODS = {
  _toHtml: "text/html",
  _toMarkdown: "text/markdown",
  _toLatex: "text/latex",
  _toSvg: "image/svg+xml",
  _toPng: "image/png",
  _toJpeg: "image/jpeg",
};

/** Sender of representations. */
class Display {
  constructor(channels, output) {
    this.channels = channels;
    this.output = output;
  }

  /** Returns the object `$$`, whose methods display a value as one MIME type; `mime` takes a whole bundle. */
  builders() {
    const show = (data) => this.send("display_data", { data, metadata: {}, transient: {} });
    const builders = { mime: (bundle) => show(Object.fromEntries(Object.entries(bundle).map(encode))) };
    for (const [name, type] of Object.entries(BUILDERS)) {
      builders[name] = (value) => show(Object.fromEntries([encode([type, value])]));
    }
    return builders;
  }

  send(type, content) {
    this.output.flush();
    this.channels.publish(type, content);
  }
}

/** Returns the bundle of a value. Methods of the value may throw. */
function bundle(value) {
  // A string is a result that programs read, so it is complete.
  const data = { "text/plain": util.inspect(value, { colors: false, maxStringLength: Infinity }) };
  if (value === null || typeof value !== "object" || util.types.isProxy(value)) {
    return data;
  }
  for (const [method, type] of Object.entries(METHODS)) {
    if (typeof value[method] === "function") {
      Object.assign(data, Object.fromEntries([encode([type, value[method]()])]));
    }
  }
  return typeof value._toMime === "function" ? { ...data, ...Object.fromEntries(Object.entries(value._toMime()).map(encode)) } : data;
}

/** Returns a pair of MIME type and value as it is sent: bytes in base64, and text as a string. */
function encode([type, value]) {
  if (value instanceof Uint8Array) {
    return [type, Buffer.from(value).toString("base64")];
  }
  return [type, /json/.test(type) ? JSON.parse(JSON.stringify(value) ?? "null") : String(value)];
}

module.exports = { Display, bundle };
