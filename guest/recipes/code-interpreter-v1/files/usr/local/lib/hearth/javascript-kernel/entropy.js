// Random numbers that differ between sandboxes restored from one snapshot.
//
// V8's generator and OpenSSL's are in the snapshot. `Math.random` becomes a generator that can be seeded again, and the
// functions of `crypto` that return random values read the operating system's.

"use strict";

const crypto = require("crypto");
const { openSync, readSync } = require("fs");
const { syncBuiltinESMExports } = require("module");

const SOURCE = "/dev/urandom";
/** Key of the global function that the server calls after a restore. */
const RESEED = Symbol.for("hearth.reseed");

const state = new Uint32Array(4);
let source;

/** Fills the buffer from the operating system's generator. */
function fill(buffer) {
  source ??= openSync(SOURCE, "r");
  for (let at = 0; at < buffer.length; ) {
    at += readSync(source, buffer, at, buffer.length - at, null);
  }
  return buffer;
}

function reseed() {
  fill(new Uint8Array(state.buffer));
  state[0] |= 1; // The generator stays at zero if its whole state is zero.
}

/** Returns 32 random bits: xoshiro128**, by David Blackman and Sebastiano Vigna, public domain. */
function next() {
  const product = Math.imul(state[1], 5);
  const result = Math.imul((product << 7) | (product >>> 25), 9);
  const shifted = state[1] << 9;
  state[2] ^= state[0];
  state[3] ^= state[1];
  state[1] ^= state[2];
  state[0] ^= state[3];
  state[2] ^= shifted;
  state[3] = (state[3] << 11) | (state[3] >>> 21);
  return result >>> 0;
}

/** Returns a number of at least 0 and less than 1, with 53 random bits. */
function random() {
  return ((next() >>> 5) * 0x4000000 + (next() >>> 6)) / 0x20000000000000;
}

/** Returns the bytes of a buffer, a typed array or their memory. */
function bytes(target, offset = 0, size = undefined) {
  if (target instanceof ArrayBuffer || target instanceof SharedArrayBuffer) {
    return new Uint8Array(target, offset, size);
  }
  const unit = target.BYTES_PER_ELEMENT ?? 1;
  const start = target.byteOffset + offset * unit;
  return new Uint8Array(target.buffer, start, size === undefined ? target.byteLength - offset * unit : size * unit);
}

function uuid() {
  const value = fill(Buffer.alloc(16));
  value[6] = (value[6] & 0x0f) | 0x40;
  value[8] = (value[8] & 0x3f) | 0x80;
  const hex = value.toString("hex");
  return [[0, 8], [8, 12], [12, 16], [16, 20], [20, 32]].map(([from, to]) => hex.slice(from, to)).join("-");
}

/** Returns an integer of at least `low` and less than `high`; the difference is less than 2^48. */
function integer(low, high) {
  const range = high - low;
  const limit = 2 ** 48 - (2 ** 48 % range);
  let value;
  do {
    value = fill(Buffer.alloc(6)).readUIntBE(0, 6);
  } while (value >= limit);
  return low + (value % range);
}

/** Replaces a function: the original checks the arguments, and the replacement makes the value. */
function replace(object, name, make) {
  const original = object[name];
  const replacement = {
    [name](...parameters) {
      const callback = parameters.at(-1);
      if (typeof callback !== "function") {
        return make(original.apply(this, parameters), parameters);
      }
      const wrapped = (error, value) => callback(error, error ? value : make(value, parameters));
      return original.apply(this, [...parameters.slice(0, -1), wrapped]);
    },
  };
  Object.defineProperty(object, name, { value: replacement[name], writable: true, configurable: true, enumerable: true });
}

/** Replaces the generators of this process. */
function install() {
  reseed();
  Math.random = random;
  Object.defineProperty(globalThis, RESEED, { value: reseed });
  for (const name of ["randomBytes", "pseudoRandomBytes", "prng", "rng"]) {
    replace(crypto, name, (value) => fill(value));
  }
  const filled = (target, [, offset, size]) => {
    const [from, length] = [offset, size].map((option) => (typeof option === "number" ? option : undefined));
    fill(bytes(target, from, length));
    return target;
  };
  replace(crypto, "randomFill", filled);
  replace(crypto, "randomFillSync", filled);
  replace(crypto, "randomInt", (_, [first, second]) => (typeof second === "number" ? integer(first, second) : integer(0, first)));
  replace(crypto, "randomUUID", uuid);
  const getRandomValues = (target) => {
    fill(bytes(target));
    return target;
  };
  // `crypto.getRandomValues` calls this one.
  replace(Object.getPrototypeOf(crypto.webcrypto), "getRandomValues", getRandomValues);
  replace(Object.getPrototypeOf(crypto.webcrypto), "randomUUID", uuid);
  syncBuiltinESMExports();
}

module.exports = { install, reseed };
