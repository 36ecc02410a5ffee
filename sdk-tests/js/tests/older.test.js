// Journeys with an older SDK, which uses the first generation of create and connect routes, and validates keys itself.

import { Sandbox } from 'e2b-older'
import { afterAll, beforeAll, expect, test } from 'vitest'

import { MARK } from '../journeys.js'

let sandbox

beforeAll(async () => {
  sandbox = await Sandbox.create({ timeoutMs: 300_000, metadata: { ...MARK, generation: 'older' } })
})

afterAll(() => sandbox?.kill())

test('commands, files and a watch', async () => {
  expect((await sandbox.commands.run('echo $((6 * 7))')).stdout).toBe('42\n')
  const names = []
  const watch = await sandbox.files.watchDir('/home/user', (event) => names.push(event.name))
  await sandbox.files.write('older.txt', 'text of an older client')
  expect(await sandbox.files.read('older.txt')).toBe('text of an older client')
  await expect.poll(() => names, { timeout: 30_000 }).toContain('older.txt')
  await watch.stop()
})

test('connecting, listing and timeouts', async () => {
  const again = await Sandbox.connect(sandbox.sandboxId)
  expect((await again.commands.run('cat older.txt')).stdout).toBe('text of an older client')
  await again.setTimeout(200_000)
  const pages = Sandbox.list({ query: { metadata: { ...MARK, generation: 'older' } } })
  expect((await pages.nextItems()).map((item) => item.sandboxId)).toEqual([sandbox.sandboxId])
  expect((await sandbox.getInfo()).sandboxId).toBe(sandbox.sandboxId)
  expect(await sandbox.isRunning()).toBe(true)
})
