// Fails if a sandbox of the tests exists after all tests.

import { randomUUID } from 'node:crypto'

import { Sandbox } from 'e2b'

export function setup() {
  process.env.HEARTH_JOURNEYS_MARK = randomUUID()
}

export async function teardown() {
  try {
    await count()
  } catch (error) {
    // vitest prints an error of a teardown, but does not fail because of it.
    process.exitCode = 1
    throw error
  }
}

async function count() {
  const left = []
  const pages = Sandbox.list({ query: { metadata: { journeys: process.env.HEARTH_JOURNEYS_MARK } } })
  while (pages.hasNext) left.push(...(await pages.nextItems()))
  for (const info of left) await Sandbox.kill(info.sandboxId)
  if (left.length > 0) throw new Error(`tests left sandboxes: ${JSON.stringify(left)}`)
}
