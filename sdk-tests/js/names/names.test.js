// What only works where a sandbox has a name: signed addresses, hosts of ports, TLS.

import { Sandbox } from 'e2b'
import { afterAll, beforeAll, expect, test } from 'vitest'

import { ENVD_PORT, eventually, sharedSandbox } from '../journeys.js'

const DOMAIN = process.env.E2B_DOMAIN

let sandbox
beforeAll(async () => {
  sandbox = await sharedSandbox()
})
afterAll(() => sandbox?.kill())

test('the domain alone is enough', async () => {
  expect([process.env.E2B_API_URL, process.env.E2B_SANDBOX_URL]).toEqual([undefined, undefined])
  expect(sandbox.getHost(3000)).toBe(`3000-${sandbox.sandboxId}.${DOMAIN}`)
  expect((await sandbox.commands.run('echo $((6 * 7))')).stdout).toBe('42\n')
  const again = await Sandbox.connect(sandbox.sandboxId)
  expect(await again.isRunning()).toBe(true)
})

test('a signed address is all that an upload and a download need', async () => {
  const body = new FormData()
  body.append('file', 'by a stranger')
  const url = await sandbox.uploadUrl('signed.txt')
  expect(url.startsWith(`https://${ENVD_PORT}-${sandbox.sandboxId}.${DOMAIN}/files?`)).toBe(true)
  expect((await fetch(url, { method: 'POST', body })).status).toBe(200)
  expect(await sandbox.files.read('signed.txt')).toBe('by a stranger')
  const limited = await sandbox.downloadUrl('signed.txt', { useSignatureExpiration: 60 })
  expect(await (await fetch(limited)).text()).toBe('by a stranger')
  expect((await fetch(url)).status).toBe(401)
})

test('a service has an address of its own', async () => {
  await sandbox.files.write('index.txt', 'served')
  const server = await sandbox.commands.run('python3 -m http.server 8000', { background: true, timeoutMs: 0 })
  const url = `https://${sandbox.getHost(8000)}/index.txt`
  await eventually(async () => (await fetch(url)).status === 200, 30_000)
  expect(await (await fetch(url)).text()).toBe('served')
  await server.kill()
  await eventually(async () => (await fetch(url)).status === 502, 30_000)
})
