// Runs cells in the global scope of this process, and interrupts them.
//
// Code runs inside a script that a SIGINT breaks, together with the promise callbacks that follow it. After that the kernel
// waits for a promise, which an interrupt rejects.

"use strict";

const { createRequire } = require("module");
const path = require("path");
const util = require("util");
const vm = require("vm");

const { compile, load } = require("./cell");

/** Thrown by `process.exit()`, to end the cell. */
const EXIT = Symbol("exit");
/** Key of the global function that runs code inside the script that a signal breaks. */
const CALL = Symbol.for("hearth.call");
/** Key of the global function that loads what the first cell needs. */
const WARM_UP = Symbol.for("hearth.warm-up");

class Interrupted extends Error {
  constructor() {
    super("The execution was interrupted");
    this.name = "Interrupted";
    this.stack = `${this.name}: ${this.message}`;
  }
}

/** Global scope of the user's code. */
class Evaluator {
  constructor() {
    /** Rejects the value that the current cell waits for. */
    this.reject = null;
    /** Exit status, if the code asked to exit. */
    this.exitCode = null;
    /** Called when a signal broke the code. */
    this.onBreak = () => {};
    this.call = null;
    this.breakable = new vm.Script("globalThis[Symbol.for('hearth.call')]()", { filename: "node:kernel" });
  }

  /** Defines the globals of a module, and the hooks of the kernel. */
  install(globals) {
    const module = { exports: {}, id: ".", filename: null, loaded: false, children: [], paths: [] };
    const values = { module, exports: module.exports, require: requireFromWorkingDirectory(), ...globals };
    for (const [name, value] of Object.entries(values)) {
      Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
    }
    Object.defineProperty(globalThis, CALL, { value: () => this.call() });
    Object.defineProperty(globalThis, WARM_UP, { value: warmUp });
    process.exit = (code) => {
      this.exitCode = Number(code ?? process.exitCode ?? 0) || 0;
      throw EXIT;
    };
    // Only code is to be broken.
    process.on("SIGINT", () => {});
    process.on("uncaughtException", (error) => this.report(error));
    process.on("unhandledRejection", (error) => this.report(error));
  }

  /** Ends the wait for the current code. */
  interrupt() {
    this.reject?.(new Interrupted());
  }

  /** Prints an error that belongs to no cell. */
  report(error) {
    if (error === EXIT) {
      this.onExit?.();
    } else {
      process.stderr.write(`Uncaught ${describe(error).stack}\n`);
    }
  }

  /** Returns the value of a compiled cell. */
  async run({ code, names }, filename) {
    names.forEach(makeWritable);
    const script = new vm.Script(code, {
      filename,
      importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    });
    return this.interruptible(() => script.runInThisContext({ displayErrors: false }));
  }

  /** Calls a function that runs the user's code, and waits for its value. */
  async interruptible(call) {
    try {
      // The value is wrapped, because it may have a method `then` without being a promise.
      const [value] = await new Promise((resolve, reject) => {
        this.reject = reject;
        this.call = () => {
          const value = call();
          if (util.types.isPromise(value)) {
            Promise.prototype.then.call(value, (result) => resolve([result]), reject);
          } else {
            resolve([value]);
          }
          // Runs callbacks of settled promises, so that the signal breaks these, too.
          process._tickCallback();
        };
        // In a callback of its own, because this function is one of a promise.
        setImmediate(() => this.runBreakable(reject));
      });
      return value;
    } finally {
      this.reject = null;
    }
  }

  runBreakable(reject) {
    try {
      this.breakable.runInThisContext({ displayErrors: false, breakOnSigint: true });
    } catch (error) {
      const isBroken = error?.code === "ERR_SCRIPT_EXECUTION_INTERRUPTED";
      if (isBroken) {
        this.onBreak();
      }
      reject(isBroken ? new Interrupted() : error);
    }
  }
}

/** Lets a cell declare a name that is a read-only global of Node.js, such as `crypto`. */
function makeWritable(name) {
  const property = Object.getOwnPropertyDescriptor(globalThis, name);
  if (property?.configurable && !property.writable) {
    Object.defineProperty(globalThis, name, { value: undefined, writable: true, configurable: true, enumerable: true });
  }
}

/** Returns a `require` that resolves names as a file in the current working directory would. */
function requireFromWorkingDirectory() {
  const here = () => createRequire(path.join(process.cwd(), "cell.js"));
  const require = (name) => here()(name);
  require.resolve = (...parameters) => here().resolve(...parameters);
  const { cache, extensions, main } = createRequire(__filename);
  return Object.assign(require, { cache, extensions, main });
}

/** Loads the compiler and compiles a cell of each kind. */
function warmUp() {
  load();
  const cells = ["const a: number = 1; a", "import { b } from 'fs'; await b", "class C {} function d() {} enum E { F }"];
  cells.forEach((cell) => compile(cell));
  util.inspect({ a: [1, new Map([["b", /c/]])] });
}

/** Returns name, message and stack of anything that was thrown; it may be hostile. */
function describe(error) {
  try {
    if (error === null || (typeof error !== "object" && typeof error !== "function")) {
      return { name: typeof error, message: String(error), stack: util.inspect(error) };
    }
    const name = String(error.name ?? error.constructor?.name ?? "Error");
    const message = String(error.message ?? util.inspect(error));
    return { name, message, stack: withoutInternalFrames(String(error.stack ?? util.inspect(error))) };
  } catch {
    return { name: "Error", message: "The error cannot be described", stack: "Error: The error cannot be described" };
  }
}

/** Removes the frames of the kernel and of Node.js's own code. */
function withoutInternalFrames(stack) {
  const isInternal = (line) => /^ {4}at /.test(line) && (line.includes(__dirname) || /\(?node:(internal|vm|kernel)/.test(line));
  return stack
    .split("\n")
    .filter((line) => !isInternal(line))
    .join("\n");
}

module.exports = { Evaluator, EXIT, describe };
