// Names and tools of the journeys.

import { Sandbox } from 'e2b'
import { onTestFinished } from 'vitest'

function fromEnvironment(...names) {
  const value = names.map((name) => process.env[name]).find(Boolean)
  if (!value) throw new Error(`${names.at(-1)} is not set: start the journeys with \`make sdk-tests\``)
  return value
}

export const API_KEY = fromEnvironment('E2B_API_KEY')
// Where requests go that no SDK makes. SDKs may be told of names instead.
export const API_URL = fromEnvironment('JOURNEYS_API_URL', 'E2B_API_URL')
export const SANDBOX_URL = fromEnvironment('JOURNEYS_SANDBOX_URL', 'E2B_SANDBOX_URL')
export const ENVD_PORT = 49983

/** Every sandbox of this run carries it, so that the end of the run can tell its own from others. */
export const MARK = { journeys: fromEnvironment('HEARTH_JOURNEYS_MARK') }

/** A sandbox that is killed after the test. */
export async function newSandbox(options = {}) {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000, ...options, metadata: { ...MARK, ...options.metadata } })
  // A test may have killed it, or it may have expired: then there is nothing to do.
  onTestFinished(() => sandbox.kill().then(() => undefined))
  return sandbox
}

/** A sandbox for all tests of a file that do not disturb each other; the caller kills it. */
export function sharedSandbox(options = {}) {
  return Sandbox.create({ timeoutMs: 900_000, metadata: MARK, ...options })
}

/** Routing by the two headers. */
export function byHeaders(sandboxId, port) {
  return { 'E2b-Sandbox-Id': sandboxId, 'E2b-Sandbox-Port': String(port) }
}

/** What `look` returns as soon as that is something; fails when it is not within so many milliseconds. */
export async function eventually(look, withinMs) {
  const deadline = Date.now() + withinMs
  for (;;) {
    const found = await look()
    if (found) return found
    if (Date.now() > deadline) throw new Error(`not within ${withinMs} ms`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

/** A text that grows, and a way to wait for something in it. */
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
