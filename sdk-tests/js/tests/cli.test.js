// Sandbox commands of the unmodified official E2B command line.

import { Sandbox } from 'e2b'
import { afterAll, beforeAll, expect, test } from 'vitest'

import { CommandLine } from '../cli.js'
import { eventually, sharedSandbox } from '../journeys.js'

const commandLine = new CommandLine()
const e2b = commandLine.run

let sandbox

beforeAll(async () => {
  sandbox = await sharedSandbox()
})

afterAll(async () => {
  await sandbox?.kill()
  commandLine.remove()
})

test('create, list, info and kill', async () => {
  const created = await e2b('sandbox', 'create', '--detach')
  expect(created.code, created.stderr).toBe(0)
  const [id] = created.stdout.match(/\bi[a-z0-9]{20}\b/)
  try {
    const listed = JSON.parse((await e2b('sandbox', 'list', '--format', 'json')).stdout)
    expect(listed.map((item) => item.sandboxId)).toContain(id)
    const info = JSON.parse((await e2b('sandbox', 'info', id, '--format', 'json')).stdout)
    expect(info).toMatchObject({ sandboxId: id, state: 'running' })
  } finally {
    expect((await e2b('sandbox', 'kill', id)).code).toBe(0)
  }
  await expect(Sandbox.getInfo(id)).rejects.toThrow()
})

test('exec runs commands and returns their exit codes', async () => {
  const well = await e2b('sandbox', 'exec', sandbox.sandboxId, 'echo from the command line')
  expect(well).toMatchObject({ stdout: 'from the command line\n', code: 0 })
  expect((await e2b('sandbox', 'exec', sandbox.sandboxId, 'exit 7')).code).toBe(7)
  const echoed = await commandLine.piped('two\nlines\n', 'sandbox', 'exec', sandbox.sandboxId, 'cat')
  expect(echoed).toMatchObject({ stdout: 'two\nlines\n', code: 0 })
})

test('logs and metrics are printed', async () => {
  await sandbox.commands.run('echo logged')
  await eventually(async () => {
    const { stdout, code } = await e2b('sandbox', 'logs', sandbox.sandboxId, '--format', 'json')
    return code === 0 && stdout.includes('echo logged')
  }, 30_000)
  await eventually(async () => {
    const { stdout, code } = await e2b('sandbox', 'metrics', sandbox.sandboxId, '--format', 'json')
    return code === 0 && stdout.includes('cpu')
  }, 30_000)
})

test('an unknown sandbox is an error', async () => {
  const { code, stdout, stderr } = await e2b('sandbox', 'info', 'i00000000000000000000')
  expect(code).not.toBe(0)
  expect(stdout + stderr).toContain("wasn't found")
})
