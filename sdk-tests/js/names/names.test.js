// Features that need host names: signed URLs, host names of ports, TLS.

import { readFile } from 'node:fs/promises'
import { connect } from 'node:http2'

import { Sandbox } from 'e2b'
import { afterAll, beforeAll, expect, test } from 'vitest'

import { ENVD_PORT, eventually, sharedSandbox, Transcript } from '../journeys.js'

const DOMAIN = process.env.E2B_DOMAIN

let sandbox
beforeAll(async () => {
  sandbox = await sharedSandbox()
})
afterAll(() => sandbox?.kill())

test('the SDK needs only the domain', async () => {
  expect([process.env.E2B_API_URL, process.env.E2B_SANDBOX_URL]).toEqual([undefined, undefined])
  expect(sandbox.getHost(3000)).toBe(`3000-${sandbox.sandboxId}.${DOMAIN}`)
  expect((await sandbox.commands.run('echo $((6 * 7))')).stdout).toBe('42\n')
  const again = await Sandbox.connect(sandbox.sandboxId)
  expect(await again.isRunning()).toBe(true)
})

test('signed URLs upload and download', async () => {
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

test('a service has its own host name', async () => {
  await sandbox.files.write('index.txt', 'served')
  const server = await sandbox.commands.run('python3 -m http.server 8000', { background: true, timeoutMs: 0 })
  const url = `https://${sandbox.getHost(8000)}/index.txt`
  await eventually(async () => (await fetch(url)).status === 200, 30_000)
  expect(await (await fetch(url)).text()).toBe('served')
  await server.kill()
  await eventually(async () => (await fetch(url)).status === 502, 30_000)
})

test('a server with HTTP/2 only streams in both directions', async () => {
  const program = await readFile(new URL('../../python/guest/http2_echo.mjs', import.meta.url), 'utf8')
  await sandbox.files.write('http2_echo.mjs', program)
  const printed = new Transcript()
  const server = await sandbox.commands.run('node http2_echo.mjs 8080 8443', {
    background: true, timeoutMs: 0, onStdout: printed.add,
  })
  await printed.until('listening')
  expect(await (await fetch(`https://${sandbox.getHost(8080)}/`)).text()).toBe('GET in HTTP/2')
  const client = connect(`https://${sandbox.getHost(8080)}`)
  const call = client.request({ ':method': 'POST', ':path': '/echo.Echo/Both', 'content-type': 'application/grpc', te: 'trailers' })
  const trailers = new Promise((resolve, reject) => call.once('trailers', resolve).once('error', reject))
  for (const question of ['one', 'two', 'three']) {
    call.write(question)
    expect(String(await new Promise((resolve) => call.once('data', resolve)))).toBe(question)
  }
  call.end()
  expect(await trailers).toMatchObject({ 'grpc-status': '0', 'x-bytes': '11' })
  client.close()
  await server.kill()
})
