// The SDK in a browser, on a page of another origin: CORS must allow all its requests.

import { expect, onTestFinished, test } from 'vitest'

import { openPage } from '../browser/browser.js'
import { API_KEY, API_URL, ENVD_PORT, newSandbox, SANDBOX_URL } from '../journeys.js'

test('a page works with a sandbox', async () => {
  const sandbox = await newSandbox()
  const { page, preflights, close } = await openPage()
  onTestFinished(close)
  const complaints = []
  page.on('console', (message) => message.text().includes('CORS') && complaints.push(message.text()))

  // In browsers the SDK routes by host name only, because a preflight has no routing headers. Browsers resolve all names below
  // `localhost` to this machine.
  const sandboxUrl = `http://${ENVD_PORT}-${sandbox.sandboxId}.localhost:${new URL(SANDBOX_URL).port}`
  const connection = { sandboxId: sandbox.sandboxId, apiKey: API_KEY, apiUrl: API_URL, sandboxUrl }
  const seen = await page.evaluate((connection) => globalThis.journey(connection), connection)
  expect(complaints).toEqual([])
  expect(seen).toEqual({
    command: { stdout: 'from the page: Ada\n', stderr: 'oops\n', exitCode: 0 },
    exitCode: 7,
    pushed: 'streamed',
    events: expect.arrayContaining([['create', 'note.txt'], ['write', 'note.txt']]),
    text: 'written in a browser',
    bytes: [0, 255, 128],
    listed: [['bytes', undefined], ['note.txt', 'page']],
    missing: true,
    signed: 'written in a browser',
    health: 204,
    stranger: [401, 401],
    keyless: true,
    running: true,
    killed: true,
  })
  expect(await sandbox.isRunning()).toBe(false)

  // The browser sent preflights, and all of them succeeded.
  const asked = preflights.map(([path]) => path)
  const connect = `/v2/sandboxes/${sandbox.sandboxId}/connect`
  const envd = ['/process.Process/Start', '/filesystem.Filesystem/WatchDir', '/files', '/health', '/envs']
  expect(asked).toEqual(expect.arrayContaining([connect, ...envd]))
  expect(preflights.filter(([, status]) => status < 200 || status > 299)).toEqual([])
})
