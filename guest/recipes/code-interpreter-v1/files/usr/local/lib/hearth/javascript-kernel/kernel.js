// Jupyter kernel for JavaScript and TypeScript. Usage: node kernel.js CONNECTION_FILE
//
// `channels` owns the sockets, `wire` the format of messages, `requests` the replies. A cell is rewritten by `cell`, run by
// `evaluator`, and its output goes through `output` and `display`. `entropy` replaces random state that restored sandboxes
// would share.

"use strict";

const fs = require("fs");

const cell = require("./cell");
const { Channels } = require("./channels");
const { Display } = require("./display");
const entropy = require("./entropy");
const { Evaluator } = require("./evaluator");
const { Output } = require("./output");
const { Requests } = require("./requests");

async function main(file) {
  if (file === undefined) {
    throw new Error("usage: node kernel.js CONNECTION_FILE");
  }
  const exit = process.exit.bind(process);
  entropy.install();
  cell.install();
  const channels = new Channels(JSON.parse(fs.readFileSync(file, "utf8")));
  await channels.bind();
  const output = new Output(channels);
  output.install();
  const display = new Display(channels, output);
  const evaluator = new Evaluator();
  evaluator.install({ $$: display.builders() });
  new Requests({ channels, output, display, evaluator, exit }).start();
}

main(process.argv[2]).catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
