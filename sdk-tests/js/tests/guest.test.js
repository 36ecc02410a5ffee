// Platform features for programs in a sandbox: identity, environment, metrics, and reachable ports.

import { readFile } from 'node:fs/promises'

import { Sandbox } from 'e2b'
import { afterAll, beforeAll, expect, test } from 'vitest'

import { byHeaders, ENVD_PORT, eventually, newSandbox, SANDBOX_URL, sharedSandbox, Transcript } from '../journeys.js'

// The daemon checks for new listeners every second; the rest is for a busy machine.
const FORWARDED_WITHIN_MS = 20_000
// Includes time for a busy machine.
const FIRST_SAMPLE_WITHIN_MS = 30_000

let sandbox
beforeAll(async () => {
  sandbox = await sharedSandbox({ envs: { TEAM: 'blue' } })
})
afterAll(() => sandbox?.kill())

async function output(command, options) {
  return (await sandbox.commands.run(command, options)).stdout
}

// envd: X1
test.each([
  ['0.0.0.0', 8130],
  ['::', 8131],
  ['127.0.0.1', 8132],
  ['localhost', 8133],
  ['::1', 8134],
  ['127.0.0.5', 8135],
])('a server on %s is reachable', async (address, port) => {
  const folder = `/home/user/${address.replaceAll(/\W/g, '_')}`
  await sandbox.files.write(`${folder}/index.html`, address)
  const printed = new Transcript()
  const server = await sandbox.commands.run(`python3 -u -m http.server ${port} --bind ${address} --directory ${folder}`, {
    background: true, timeoutMs: 0, onStdout: printed.add,
  })
  await printed.until('Serving')
  const ask = () => fetch(SANDBOX_URL, { headers: byHeaders(sandbox.sandboxId, port) })
  await eventually(async () => (await (await ask()).text()) === address, FORWARDED_WITHIN_MS)
  await server.kill()
  await eventually(async () => (await ask()).status === 502, FORWARDED_WITHIN_MS)
})

test('a service receives header names in canonical case, and the configured host', async () => {
  const network = { maskRequestHost: 'custom-host.example.com:${PORT}' }
  const sandbox = await newSandbox({ network })
  await sandbox.files.write('echo_head.py', await readFile(new URL('../../python/guest/echo_head.py', import.meta.url), 'utf8'))
  const printed = new Transcript()
  await sandbox.commands.run('python3 echo_head.py 8090', { background: true, timeoutMs: 0, onStdout: printed.add })
  await printed.until('listening')
  const headers = { ...byHeaders(sandbox.sandboxId, 8090), 'x-request-ID': '1' }
  const head = await (await fetch(SANDBOX_URL, { headers })).text()
  expect(head).toContain('\r\nHost: custom-host.example.com:8090\r\n')
  expect(head).toContain('\r\nX-Request-Id: 1\r\n')
})

// envd: X2
test('the events address returns the sandbox ID', async () => {
  expect(JSON.parse(await output('curl -s -m 20 $E2B_EVENTS_ADDRESS/me'))).toEqual({ sandboxID: sandbox.sandboxId })
})

// envd: X3
test('certificates are on a tmpfs', async () => {
  expect(await output('findmnt -n -o FSTYPE /etc/ssl/certs')).toBe('tmpfs\n')
  expect(await output("grep -c 'BEGIN CERTIFICATE' /etc/ssl/certs/ca-certificates.crt")).toMatch(/^\d{2,}\n$/)
})

// envd: X8
test('metrics are plausible', async () => {
  const headers = { ...byHeaders(sandbox.sandboxId, ENVD_PORT), 'X-Access-Token': sandbox.envdAccessToken }
  const metrics = await (await fetch(`${SANDBOX_URL}/metrics`, { headers })).json()
  const { cpuCount, memoryMB } = await sandbox.getInfo()
  expect(metrics.cpu_count).toBe(cpuCount)
  expect(Math.abs(metrics.ts - Date.now() / 1000)).toBeLessThan(5)
  expect(metrics.cpu_used_pct).toBeGreaterThanOrEqual(0)
  expect(metrics.cpu_used_pct).toBeLessThanOrEqual(100)
  expect(metrics.mem_total).toBeLessThanOrEqual(memoryMB * 2 ** 20)
  const parts = { mem_used: 'mem_total', mem_cache: 'mem_total', mem_used_mib: 'mem_total_mib', disk_used: 'disk_total' }
  for (const [used, total] of Object.entries(parts)) {
    expect(metrics[used]).toBeGreaterThan(0)
    expect(metrics[used]).toBeLessThan(metrics[total])
  }
})

// envd: X8
test('the host reports metrics, also of a killed sandbox', async () => {
  const sandbox = await newSandbox()
  const first = await eventually(async () => {
    const found = await sandbox.getMetrics()
    return found.length > 0 && found
  }, FIRST_SAMPLE_WITHIN_MS)
  const { cpuCount, memoryMB, startedAt } = await sandbox.getInfo()
  for (const metric of first) {
    expect(metric.timestamp.getTime()).toBeGreaterThanOrEqual(startedAt.getTime())
    expect(metric.cpuCount).toBe(cpuCount)
    expect(metric.cpuUsedPct).toBeGreaterThanOrEqual(0)
    expect(metric.cpuUsedPct).toBeLessThanOrEqual(100)
    expect(metric.memTotal).toBeLessThanOrEqual(memoryMB * 2 ** 20)
    for (const [used, total] of Object.entries({ memUsed: 'memTotal', memCache: 'memTotal', diskUsed: 'diskTotal' })) {
      expect(metric[used]).toBeGreaterThan(0)
      expect(metric[used]).toBeLessThan(metric[total])
    }
  }
  const before = startedAt.getTime() - 2000
  expect(await sandbox.getMetrics({ start: new Date(before - 3_600_000), end: new Date(before) })).toEqual([])
  await sandbox.kill()
  const kept = await Sandbox.getMetrics(sandbox.sandboxId)
  expect(kept.slice(0, first.length)).toEqual(first)
})

// envd: C10, X9
test('every command gets the environment, and the envs route returns it', async () => {
  expect(await output('echo $TEAM')).toBe('blue\n')
  expect(await output('echo $TEAM', { user: 'root', envs: { TEAM: 'red' } })).toBe('red\n')
  const ask = `curl -s -H "X-Access-Token: $TOKEN" http://localhost:${ENVD_PORT}/envs`
  const body = await output(ask, { envs: { TOKEN: sandbox.envdAccessToken } })
  expect(JSON.parse(body)).toMatchObject({ TEAM: 'blue', E2B_SANDBOX: 'true', E2B_SANDBOX_ID: sandbox.sandboxId })
})

test('identities and random numbers of two sandboxes differ', async () => {
  const other = await newSandbox()
  const facts = [
    'echo $(cat /etc/machine-id)',
    'echo $(cat /proc/sys/kernel/random/boot_id)',
    'cat /proc/sys/kernel/random/uuid',
    'head -c16 /dev/urandom | od -An -tx1',
    "python3 -c 'import random; print(random.random())'",
    'openssl rand -hex 16',
    'mktemp -u',
    'echo $RANDOM $RANDOM $RANDOM',
    'hostname',
  ]
  const read = async ({ commands }) => (await commands.run(facts.join('; '))).stdout.trimEnd().split('\n')
  const lines = [await read(sandbox), await read(other)]
  expect(lines.map(({ length }) => length)).toEqual([facts.length, facts.length])
  for (const [number, fact] of facts.entries()) expect(lines[0][number], fact).not.toBe(lines[1][number])
  expect([lines[0].at(-1), lines[1].at(-1)]).toEqual([sandbox.sandboxId, other.sandboxId])
})
