// Addresses, tokens, and the end of a sandbox.

import { Sandbox, TimeoutError } from '@e2b/code-interpreter'
import { expect, test } from 'vitest'

import { byHeaders, SANDBOX_URL } from '../journeys.js'
import { newInterpreter, PORT, text } from './interpreters.js'

// interpreter: T1, T3
test('addresses and a second connection', async () => {
  const sandbox = await newInterpreter()
  const domain = process.env.E2B_DOMAIN
  expect(sandbox.jupyterUrl).toBe(domain ? `https://${PORT}-${sandbox.sandboxId}.${domain}` : SANDBOX_URL)
  expect(text(await sandbox.runCode('x = 1; x'))).toBe('1')
  const again = await Sandbox.connect(sandbox.sandboxId)
  expect(text(await again.runCode('x + 1'))).toBe('2')
})

// interpreter: T1
test('the option replaces the address', async () => {
  const sandbox = await newInterpreter({ sandboxUrl: SANDBOX_URL })
  expect(sandbox.jupyterUrl).toBe(SANDBOX_URL)
  expect(text(await sandbox.runCode('1 + 1'))).toBe('2')
})

// interpreter: B2, C2
test('counts and contexts of a new sandbox', async () => {
  const sandbox = await newInterpreter()
  expect((await sandbox.listCodeContexts()).map(({ language }) => language)).toEqual(['python', 'javascript'])
  expect((await sandbox.runCode('x = 1')).executionCount).toBe(1)
  expect((await sandbox.runCode('x += 1; x')).executionCount).toBe(2)
})

// interpreter: T2
test('private ingress', async () => {
  const sandbox = await newInterpreter({ network: { allowPublicTraffic: false } })
  expect(sandbox.trafficAccessToken).toBeTruthy()
  const headers = { 'Content-Type': 'application/json', ...byHeaders(sandbox.sandboxId, PORT) }
  // By addresses in any case: the edge also routes names by these headers.
  const stranger = await fetch(`${SANDBOX_URL}/execute`, { method: 'POST', headers, body: '{"code":"1"}' })
  expect(stranger.status).toBe(403)
  await stranger.text()
  expect(text(await sandbox.runCode('1 + 1'))).toBe('2')
  const context = await sandbox.createCodeContext()
  expect(text(await sandbox.runCode('y = 3; y', { context }))).toBe('3')
  const listed = async () => (await sandbox.listCodeContexts()).map(({ id }) => id)
  expect(await listed()).toContain(context.id)
  await sandbox.restartCodeContext(context)
  expect((await sandbox.runCode('y', { context })).error.name).toBe('NameError')
  await sandbox.removeCodeContext(context)
  expect(await listed()).not.toContain(context.id)
})

// interpreter: T4
test('a kill during an execution is named', async () => {
  const sandbox = await newInterpreter()
  let started
  const begun = new Promise((resolve) => (started = resolve))
  const code = "print('started', flush=True)\nimport time\ntime.sleep(300)"
  const running = sandbox.runCode(code, { onStdout: started, timeoutMs: 110_000 }).catch((error) => error)
  await begun
  expect(await sandbox.kill()).toBe(true)
  const error = await running
  expect(error).toBeInstanceOf(TimeoutError)
  expect(error.message).toContain('The sandbox was killed while the request was in progress')
})
