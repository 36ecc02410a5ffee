// Packages of the kernel itself, which user code does not see.

"use strict";

const { createRequire } = require("module");
const path = require("path");

module.exports = createRequire(path.join(__dirname, "../node/package.json"));
