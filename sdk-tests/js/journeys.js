// Constants and helper functions of the journeys.

import { Sandbox } from 'e2b'
import { onTestFinished } from 'vitest'

function fromEnvironment(...names) {
  const value = names.map((name) => process.env[name]).find(Boolean)
  if (!value) throw new Error(`${names.at(-1)} is not set: start the journeys with \`make sdk-tests\``)
  return value
}

export const API_KEY = fromEnvironment('E2B_API_KEY')
// Addresses for requests without an SDK. SDKs may address the server by names instead.
export const API_URL = fromEnvironment('JOURNEYS_API_URL', 'E2B_API_URL')
export const SANDBOX_URL = fromEnvironment('JOURNEYS_SANDBOX_URL', 'E2B_SANDBOX_URL')
export const ENVD_PORT = 49983

/** Metadata of every sandbox of this run, to find leftovers of the run at its end. */
export const MARK = { journeys: fromEnvironment('HEARTH_JOURNEYS_MARK') }

/** Creates a sandbox that is killed after the test. */
export async function newSandbox(options = {}) {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000, ...options, metadata: { ...MARK, ...options.metadata } })
  // A test may have killed it, or it may have expired: then this has no effect.
  onTestFinished(() => sandbox.kill().then(() => undefined))
  return sandbox
}

/** Creates a sandbox for all tests of a file that do not affect each other; the caller kills it. */
export function sharedSandbox(options = {}) {
  return Sandbox.create({ timeoutMs: 900_000, metadata: MARK, ...options })
}

/** Returns headers for routing by sandbox ID and port. */
export function byHeaders(sandboxId, port) {
  return { 'E2b-Sandbox-Id': sandboxId, 'E2b-Sandbox-Port': String(port) }
}

/** Calls `poll` until it returns a true value, and returns that; fails after `withinMs` milliseconds. */
export async function eventually(poll, withinMs) {
  const deadline = Date.now() + withinMs
  for (;;) {
    const found = await poll()
    if (found) return found
    if (Date.now() > deadline) throw new Error(`not within ${withinMs} ms`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

/** Growing text, with a method to wait until it contains something. */
export class Transcript {
  text = ''
  #decoder = new TextDecoder()
  #waiting = []

  add = (data) => {
    this.text += typeof data === 'string' ? data : this.#decoder.decode(data, { stream: true })
    this.#waiting = this.#waiting.filter(({ wanted, resolve }) => !this.text.includes(wanted) || resolve())
  }

  until(wanted) {
    if (this.text.includes(wanted)) return Promise.resolve()
    return new Promise((resolve) => this.#waiting.push({ wanted, resolve }))
  }
}
