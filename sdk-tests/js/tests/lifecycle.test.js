// Lifecycle of sandboxes: create, info, list, connect, timeout, expiry, kill.

import { randomUUID } from 'node:crypto'

import { AuthenticationError, Sandbox, SandboxNotFoundError, TimeoutError } from 'e2b'
import { expect, test } from 'vitest'

import { byHeaders, ENVD_PORT, eventually, newSandbox, SANDBOX_URL, Transcript } from '../journeys.js'

/** Returns true once a stopping sandbox no longer exists. Until then, connecting fails with 409. */
async function isUnknown(sandboxId) {
  const error = await Sandbox.connect(sandboxId).catch((error) => error)
  if (error instanceof SandboxNotFoundError) return true
  expect(error).toMatchObject({ statusCode: 409 })
  return false
}

test('information about a new sandbox', async () => {
  const metadata = { purpose: 'tell', 'ümläut & = %': 'a b+c%20d' }
  const sandbox = await newSandbox({ metadata, timeoutMs: 119_100 })
  expect(sandbox.sandboxId).toMatch(/^[a-z0-9]+$/)
  const info = await sandbox.getInfo()
  expect(info).toMatchObject({ sandboxId: sandbox.sandboxId, name: 'base', state: 'running', metadata })
  // The SDK rounds milliseconds up to whole seconds.
  expect(Math.abs(info.endAt - info.startedAt - 120_000)).toBeLessThan(1000)
  expect(await sandbox.isRunning()).toBe(true)
  expect(sandbox.getHost(8000)).toMatch(new RegExp(`^8000-${sandbox.sandboxId}\\.`))
})

test('lists filter, order and page', async () => {
  const group = { group: randomUUID(), 'what & why = 50%': 'a+b c' }
  const first = await newSandbox({ metadata: { ...group, n: '1' } })
  const second = await newSandbox({ metadata: { ...group, n: '2' } })
  async function ids(options) {
    const pages = Sandbox.list(options)
    const found = []
    while (pages.hasNext) found.push((await pages.nextItems()).map((info) => info.sandboxId))
    return found
  }
  const newestFirst = [second.sandboxId, first.sandboxId]
  expect(await ids({ query: { metadata: group } })).toEqual([newestFirst])
  expect(await ids({ query: { metadata: group, state: ['running', 'paused'] }, limit: 1 })).toEqual(newestFirst.map((id) => [id]))
  expect(await ids({ query: { metadata: group }, order: 'asc' })).toEqual([[...newestFirst].reverse()])
  expect(await ids({ query: { metadata: { ...group, n: '1' } } })).toEqual([[first.sandboxId]])
  expect(await ids({ query: { metadata: group, state: ['paused'] } })).toEqual([[]])
})

// envd: C10
test('connecting to a running sandbox never shortens its lifetime', async () => {
  const sandbox = await newSandbox({ envs: { NAME: 'Ada' } })
  const { endAt } = await sandbox.getInfo()
  const same = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 10_000 })
  expect((await same.commands.run('echo $NAME')).stdout).toBe('Ada\n')
  expect((await sandbox.getInfo()).endAt).toEqual(endAt)
  await sandbox.connect({ timeoutMs: 900_000 })
  expect((await sandbox.getInfo()).endAt - Date.now()).toBeGreaterThan(890_000)
})

test('a sandbox expires at its end time', async () => {
  const sandbox = await newSandbox()
  await sandbox.setTimeout(3000)
  const { endAt } = await sandbox.getInfo()
  const seen = await eventually(async () => !(await sandbox.isRunning()) && Date.now(), 10_000)
  expect(seen).toBeGreaterThanOrEqual(endAt.getTime())
  expect(seen - endAt.getTime()).toBeLessThan(1500)
  await expect(sandbox.getInfo()).rejects.toThrow(SandboxNotFoundError)
  await expect(sandbox.commands.run('true')).rejects.toThrow(SandboxNotFoundError)
  await expect(sandbox.files.read('note')).rejects.toThrow(TimeoutError)
})

// envd: X4
test('a killed sandbox is not found immediately', async () => {
  const sandbox = await newSandbox()
  expect(await sandbox.kill()).toBe(true)
  const response = await fetch(`${SANDBOX_URL}/health`, { headers: byHeaders(sandbox.sandboxId, ENVD_PORT) })
  expect(response.status).toBe(502)
  expect(await response.json()).toEqual({ sandboxId: sandbox.sandboxId, message: 'The sandbox was not found', code: 502 })
  expect(await sandbox.isRunning()).toBe(false)
  expect(await Sandbox.kill(sandbox.sandboxId)).toBe(false)
  await expect(Sandbox.getInfo(sandbox.sandboxId)).rejects.toThrow(SandboxNotFoundError)
  // While the sandbox stops, these calls get 409, afterwards 404.
  await eventually(() => isUnknown(sandbox.sandboxId), 20_000)
  await expect(sandbox.setTimeout(1000)).rejects.toThrow(SandboxNotFoundError)
})

// envd: C16
test('a kill terminates a running command', async () => {
  const sandbox = await newSandbox()
  const printed = new Transcript()
  const handle = await sandbox.commands.run('echo started; sleep 300', { background: true, timeoutMs: 0, onStdout: printed.add })
  await printed.until('started')
  const ended = handle.wait().catch((error) => error)
  expect(await sandbox.kill()).toBe(true)
  expect(await ended).toBeInstanceOf(TimeoutError)
  expect((await ended).message).toMatch(/killed or reached its end of life/)
})

test('a wrong key and an unknown template are errors', async () => {
  await expect(Sandbox.create({ apiKey: `e2b_${'0'.repeat(40)}` })).rejects.toThrow(AuthenticationError)
  await expect(Sandbox.create(`missing-${randomUUID().slice(0, 8)}`)).rejects.toThrow(/404/)
})

test('concurrent sandboxes', async () => {
  const numbers = [0, 1, 2, 3, 4]
  const outputs = await Promise.all(
    numbers.map(async (number) => {
      const sandbox = await newSandbox()
      await sandbox.files.write('number', String(number))
      return (await sandbox.commands.run('cat number')).stdout
    }),
  )
  expect(outputs).toEqual(numbers.map(String))
})
