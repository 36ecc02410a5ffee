// Access to a sandbox's daemon: without a token, with a signature, and in a sandbox without a token.

import { AuthenticationError, getSignature, Sandbox } from 'e2b'
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from 'vitest'

import { API_KEY, API_URL, byHeaders, ENVD_PORT, MARK, SANDBOX_URL, sharedSandbox } from '../journeys.js'

// Token of the published examples of signatures.
const TOKEN = '0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0'

let sandbox
beforeAll(async () => {
  sandbox = await sharedSandbox()
})
afterAll(() => sandbox?.kill())

/** Sends a request to a sandbox's daemon. The host in the SDK's URLs may not exist here, so only path and query are used. */
async function call(address, options = {}, id = sandbox.sandboxId) {
  const { pathname, search } = new URL(address, SANDBOX_URL)
  const headers = { ...byHeaders(id, ENVD_PORT), ...options.headers }
  const response = await fetch(`${SANDBOX_URL}${pathname}${search}`, { ...options, headers })
  return { status: response.status, statusText: response.statusText, text: await response.text() }
}

function post(path, headers) {
  return call(path, { method: 'POST', body: '{}', headers: { 'Content-Type': 'application/json', ...headers } })
}

function form(content) {
  const body = new FormData()
  body.append('file', content)
  return { method: 'POST', body }
}

// envd: S1, S8
test('a call without the token is rejected', async () => {
  const list = (token) => post('/process.Process/List', token)
  for (const token of [{}, { 'X-Access-Token': 'wrong' }]) {
    const { status, statusText, text } = await list(token)
    expect([status, statusText]).toEqual([401, 'Unauthorized'])
    expect(JSON.parse(text)).toMatchObject({ code: 401, message: expect.stringContaining('unauthorized access') })
  }
  expect((await list({ 'X-Access-Token': sandbox.envdAccessToken })).status).toBe(200)
})

// envd: S2
test.each([['user', '/home/user'], ['root', '/root']])('signed URLs of %s', async (user, home) => {
  const sent = await call(await sandbox.uploadUrl('hello.txt', { user }), form('signed'))
  expect(sent.status).toBe(200)
  expect(JSON.parse(sent.text)).toEqual([{ name: 'hello.txt', path: `${home}/hello.txt`, type: 'file' }])
  expect(await call(await sandbox.downloadUrl('hello.txt', { user }))).toMatchObject({ status: 200, text: 'signed' })
  const limited = await sandbox.downloadUrl('hello.txt', { user, useSignatureExpiration: 60 })
  expect(await call(limited)).toMatchObject({ status: 200, text: 'signed' })
})

// envd: S3, S4, S5, S6
test('signed URLs expire, and are valid for one operation only', async () => {
  const path = '/home/user/a name+1.txt'
  await sandbox.files.write(path, 'signed')
  const refused = (code, message) => ({ status: code, text: `${JSON.stringify({ code, message })}\n` })
  const expired = await sandbox.downloadUrl(path, { useSignatureExpiration: -60 })
  expect(await call(expired)).toMatchObject(refused(401, 'signature is already expired'))
  const url = new URL(await sandbox.downloadUrl(path, { useSignatureExpiration: 60 }))
  expect((await call(url)).text).toBe('signed')
  url.searchParams.delete('signature_expiration')
  expect(await call(url)).toMatchObject(refused(401, 'invalid signature'))
  url.searchParams.delete('signature')
  expect((await call(url)).status).toBe(401)
  const missing = await sandbox.downloadUrl('/home/user/demo/test.txt')
  expect(await call(missing)).toMatchObject(refused(404, "path '/home/user/demo/test.txt' does not exist"))
  // A signature for reading does not permit writing.
  expect((await call(await sandbox.downloadUrl(path), form('no'))).status).toBe(401)
})

// envd: S7
test('unsigned URLs work in a sandbox without a token', async () => {
  // Only the first generation of the create route still creates such sandboxes.
  const created = await fetch(`${API_URL}/sandboxes`, {
    method: 'POST',
    headers: { 'X-API-Key': API_KEY, 'Content-Type': 'application/json' },
    body: JSON.stringify({ templateID: 'base', timeout: 120, metadata: MARK }),
  })
  const { sandboxID, envdAccessToken } = await created.json()
  onTestFinished(() => Sandbox.kill(sandboxID).then(() => undefined))
  expect(envdAccessToken).toBeUndefined()
  expect((await call('/files?path=open.txt', form('open'), sandboxID)).status).toBe(200)
  expect((await call('/files?path=open.txt', {}, sandboxID)).text).toBe('open')
  const open = await Sandbox.connect(sandboxID)
  const url = await open.downloadUrl('open.txt')
  expect(url).not.toContain('signature')
  expect((await call(url, {}, sandboxID)).text).toBe('open')
  expect((await open.commands.run('cat open.txt')).stdout).toBe('open')
})

// envd: S9
test('signatures of the SDK match the published examples', async () => {
  vi.useFakeTimers({ toFake: ['Date'], now: (1_893_456_000 - 60) * 1000 })
  onTestFinished(() => vi.useRealTimers())
  const signed = (path, operation, user, expirationInSeconds) =>
    getSignature({ path, operation, user, expirationInSeconds, envdAccessToken: TOKEN })
  expect((await signed('hello.txt', 'read', 'user')).signature).toBe('v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E')
  expect((await signed('/home/user/data.bin', 'write')).signature).toBe('v1_2n9B1LJzjs46lZKdqZWgu9B+2D3fHayI9GOVF0mJAEc')
  expect(await signed('/home/user/data.bin', 'write', 'root', 60)).toEqual({
    signature: 'v1_9Csep9kFGe+Lw/bUqHkxp9UbZgOnqfX5c6KjK7GQ2h0', expiration: 1_893_456_000,
  })
})

// envd: S10
test('internal routes are rejected', async () => {
  for (const token of [{}, { 'X-Access-Token': 'wrong' }, { 'X-Access-Token': sandbox.envdAccessToken }]) {
    const { status, text } = await post('/init', token)
    expect(status).toBe(404)
    expect(JSON.parse(text)).toEqual({
      message: 'This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL',
      path: '/init',
      code: 404,
    })
  }
})
