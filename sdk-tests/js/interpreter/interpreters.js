// Sandboxes with the code interpreter.

import { Sandbox } from '@e2b/code-interpreter'
import { expect, onTestFinished } from 'vitest'

import { MARK } from '../journeys.js'

export const PORT = 49999
/** Under emulation, a kernel of another language needs up to a minute to start. */
export const KERNEL_START = { timeoutMs: 120_000 }

/** Creates a sandbox for all tests of a file that do not affect each other; the caller kills it. */
export function sharedInterpreter(options = {}) {
  return Sandbox.create({ timeoutMs: 900_000, metadata: MARK, ...options })
}

/** Creates a sandbox that is killed after the test. */
export async function newInterpreter(options = {}) {
  const sandbox = await sharedInterpreter(options)
  // A test may have killed it: then this has no effect.
  onTestFinished(() => sandbox.kill().then(() => undefined))
  return sandbox
}

/** Returns the standard output of an execution that must succeed. */
export function output(execution) {
  expect(execution.error).toBeUndefined()
  return execution.logs.stdout.join('')
}

/** Returns the text of the main result of an execution that must succeed. */
export function text(execution) {
  output(execution)
  return execution.text
}
