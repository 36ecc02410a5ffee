// Interruption, and death of the server: the next execution works.

import { TimeoutError } from '@e2b/code-interpreter'
import { afterAll, beforeAll, expect, test } from 'vitest'

import { byHeaders, eventually, SANDBOX_URL } from '../journeys.js'
import { output, PORT, sharedInterpreter, SLOWNESS, text } from './interpreters.js'

let sandbox
beforeAll(async () => {
  sandbox = await sharedInterpreter()
})
afterAll(() => sandbox?.kill())

const nextExecution = async (timeoutMs) => expect(text(await sandbox.runCode('1 + 1', { timeoutMs }))).toBe('2')

// interpreter: R1, F5
test('after a timeout of the client the next execution works', async () => {
  await expect(sandbox.runCode('import time; time.sleep(300)', { timeoutMs: 3000 })).rejects.toThrow(TimeoutError)
  await nextExecution(10_000 * SLOWNESS)
})

// interpreter: R2
test('a killed server comes back', async () => {
  // The brackets exclude the shell that runs this command.
  await sandbox.commands.run("pkill -KILL -f 'hearth-interprete[r]'", { user: 'root' })
  const headers = byHeaders(sandbox.sandboxId, PORT)
  const health = () => fetch(`${SANDBOX_URL}/health`, { headers })
  await eventually(async () => (await health()).status === 200, 30_000 * SLOWNESS)
  await nextExecution(30_000 * SLOWNESS)
})

// interpreter: F4
test('many small outputs arrive in order', async () => {
  const code = 'for number in range(10_000): print(number, flush=True)'
  const execution = await sandbox.runCode(code, { timeoutMs: 60_000 * SLOWNESS })
  const expected = Array.from({ length: 10_000 }, (_, number) => `${number}\n`).join('')
  expect(output(execution)).toBe(expected)
})

// interpreter: F7
test('unusual characters in code and output', async () => {
  const signs = '\u2028\u2029\u0085😀é'
  expect(output(await sandbox.runCode(`print('${signs}' * 20000)`))).toBe(`${signs.repeat(20_000)}\n`)
})
