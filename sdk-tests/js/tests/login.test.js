// Logins of users: `e2b auth` with the server's login page, in a real browser.

import { execFileSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { lookup } from 'node:dns/promises'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'

import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'

import { launch } from '../browser/browser.js'
import { CommandLine } from '../cli.js'
import { API_URL } from '../journeys.js'

const PROGRAM = process.env.HEARTH_PROGRAM
const EMAIL = `${randomUUID()}@example.com`
// Below the number of wrong passwords that the server allows for one account.
const DROPS_MAX = 6
const PASSWORD = 'correct horse <battery> & "staple"'

/** Runs a command of an operator on the server's machine. */
function hearth(words, input = '') {
  const { PATH, HOME, HEARTH_DATA_DIR } = process.env
  return execFileSync(PROGRAM, words, { encoding: 'utf8', input, env: { PATH, HOME, HEARTH_DATA_DIR } })
}

/** Creates a command line without an API key, with variables that address the server. */
function newCommandLine(environment) {
  const commandLine = new CommandLine({ E2B_API_KEY: undefined, ...environment })
  onTestFinished(() => commandLine.remove())
  return commandLine
}

/** Starts a browser with scripts disabled. */
async function newBrowser() {
  const browser = await launch()
  onTestFinished(() => browser.close())
  return await browser.newContext({ ignoreHTTPSErrors: true, javaScriptEnabled: false })
}

/** Performs the actions of a user on a page; returns the network error that interrupted them, if any. */
async function tryOn(page, act) {
  const failed = new Promise((resolve) => page.on('requestfailed', (request) => resolve(request.failure().errorText)))
  const done = act(page).then(() => undefined, (error) => error.message.match(/net::\w+/)?.[0] ?? Promise.reject(error))
  return await Promise.race([done, failed])
}

/**
 * Retries the actions on another page if Chromium aborted the load.
 *
 * It does so when a network interface of the machine changes, for example that of a sandbox.
 */
async function tryRepeatedly(browser, act) {
  for (let drops = 0; ; drops++) {
    const page = await browser.newPage()
    const error = await tryOn(page, act)
    await page.close()
    const isDropped = ['net::ERR_NETWORK_CHANGED', 'net::ERR_ABORTED'].includes(error)
    if (!isDropped || drops === DROPS_MAX) return { error, drops }
  }
}

/** Logs in as a user who mistypes the password first. */
async function logIn(commandLine) {
  const command = commandLine.start('auth', 'login')
  const url = await commandLine.openedPage()
  const complaints = []
  const { error, drops } = await tryRepeatedly(await newBrowser(), async (page) => {
    page.on('console', (message) => /content security policy/i.test(message.text()) && complaints.push(message.text()))
    await page.goto(url)
    await page.getByLabel('Email address').fill(EMAIL)
    await page.getByLabel('Password').fill('not my password')
    await page.getByRole('button', { name: 'Log in' }).click()
    expect(await page.getByRole('alert').textContent()).toContain('nobody with this address')
    expect(await page.getByLabel('Email address').inputValue()).toBe(EMAIL)
    await page.getByLabel('Password').fill(PASSWORD)
    await page.getByRole('button', { name: 'Log in' }).click()
    await page.getByRole('heading', { name: 'You are logged in' }).waitFor()
    expect(await page.locator('main').textContent()).toContain(EMAIL)
    expect(new URL(page.url()).origin).toBe(new URL(url).origin)
  })
  // The aborted request may have been the redirect to the command line, which accepts only one.
  expect([undefined, drops > 0 ? 'net::ERR_CONNECTION_REFUSED' : undefined]).toContain(error)
  expect(complaints).toEqual([])
  const { stdout, stderr, code } = await command.ended
  expect(code, stderr).toBe(0)
  expect(stdout).toContain(`Logged in as ${EMAIL} with selected project Local`)
  return JSON.parse(readFileSync(commandLine.configFile, 'utf8'))
}

async function resolvesToLoopback(host) {
  const found = await lookup(host).catch(() => undefined)
  return found?.address === '127.0.0.1' || found?.address === '::1'
}

// Setting a password needs the server's program and data directory.
describe.skipIf(!PROGRAM)('a user', () => {
  beforeAll(() => {
    hearth(['user', 'create', EMAIL, '--team', 'local'])
    hearth(['user', 'password', EMAIL], `${PASSWORD}\n`)
  })

  afterAll(() => {
    hearth(['user', 'delete', EMAIL])
  })

  test('logs in, lists sandboxes, chooses a team and logs out', async () => {
    const commandLine = newCommandLine({ E2B_DOCS_BASE: `${API_URL}/docs` })
    const { run } = commandLine
    expect((await run('auth', 'info')).stdout).toContain('Not logged in')
    const config = await logIn(commandLine)
    expect(config).toMatchObject({
      identity: { email: EMAIL }, projectName: 'Local', projectApiKey: expect.stringMatching(/^e2b_[0-9a-f]{40}$/),
      oauth: { token_endpoint: `${API_URL}/oauth/token`, revoke_endpoint: `${API_URL}/oauth/revoke` },
    })
    expect((await run('auth', 'info')).stdout).toContain(EMAIL)
    const listed = await run('sandbox', 'list', '--format', 'json')
    expect(listed.code, listed.stderr).toBe(0)

    // With an expired access token, the command line renews its login.
    const expired = `x.${Buffer.from('{"exp":1}').toString('base64url')}.x`
    writeFileSync(commandLine.configFile, JSON.stringify({ ...config, tokens: { ...config.tokens, access_token: expired } }))
    const configure = commandLine.start('auth', 'configure')
    await configure.stdout.until('Select project')
    configure.stdin.end('\n')
    const configured = await configure.ended
    expect(configured.code, configured.stderr).toBe(0)
    expect(configured.stdout).toContain('selected')
    const renewed = JSON.parse(readFileSync(commandLine.configFile, 'utf8'))
    expect(renewed.tokens.refresh_token).not.toBe(config.tokens.refresh_token)
    expect(renewed.projectApiKey).not.toBe(config.projectApiKey)

    expect((await run('auth', 'logout')).stdout).toContain('Logged out')
    expect(existsSync(commandLine.configFile)).toBe(false)
    const response = await fetch(renewed.oauth.token_endpoint, {
      method: 'POST',
      body: new URLSearchParams({
        grant_type: 'refresh_token', refresh_token: renewed.tokens.refresh_token, client_id: renewed.oauth.client_id,
      }),
    })
    expect([response.status, (await response.json()).error]).toEqual([400, 'invalid_grant'])
  })

  test('logs in by names, with only the domain configured', async ({ skip }) => {
    const { domain, ca_file: authority } = JSON.parse(hearth(['env', '--json']))
    const host = `api.${domain.split(':')[0]}`
    if (!(await resolvesToLoopback(host))) skip(`${host} does not resolve to this machine: install libnss-myhostname`)
    const byNames = { E2B_DOMAIN: domain, NODE_EXTRA_CA_CERTS: authority, E2B_API_URL: undefined, E2B_SANDBOX_URL: undefined }
    const { oauth } = await logIn(newCommandLine(byNames))
    expect(oauth.token_endpoint).toBe(`https://${domain}/oauth/token`)
  })
})
