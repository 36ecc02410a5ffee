// Sandboxes with the code interpreter.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import { Sandbox } from '@e2b/code-interpreter'
import { expect, onTestFinished } from 'vitest'

import { MARK } from '../journeys.js'

export const PORT = 49999
/** Returns true if the private server runs its guests without hardware virtualization. */
function isEmulated() {
  if (!process.env.HEARTH_DATA_DIR) return false
  const artifacts = join(process.env.HEARTH_DATA_DIR, 'artifacts')
  const manifests = readdirSync(artifacts).map((name) => join(artifacts, name, 'manifest.json'))
  return manifests.filter(existsSync).some((path) => JSON.parse(readFileSync(path, 'utf8')).accelerator === 'tcg')
}

/**
 * Factor for time limits. An emulated guest is about ten times as slow, so that a kernel needs ten seconds to start instead
 * of one; on busy processors half a minute.
 */
export const SLOWNESS = isEmulated() ? 4 : 1
/** Time in which a kernel of any language starts. */
export const KERNEL_START = { timeoutMs: 30_000 * SLOWNESS, requestTimeoutMs: 30_000 * SLOWNESS }

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
