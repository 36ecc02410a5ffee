// Commands and terminals.

import { AuthenticationError, CommandExitError, InvalidArgumentError, NotFoundError, TimeoutError } from 'e2b'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { sharedSandbox, Transcript } from '../journeys.js'

const UNKNOWN_PID = 999_999

let sandbox
beforeAll(async () => {
  sandbox = await sharedSandbox()
})
afterAll(() => sandbox?.kill())

function run(command, options) {
  return sandbox.commands.run(command, options)
}

/** Runs a command that must fail, and returns its error. */
async function failureOf(command, options) {
  const error = await run(command, options).catch((error) => error)
  expect(error).toBeInstanceOf(CommandExitError)
  return error
}

describe('output and exit', () => {
  // envd: C1
  test('echo prints its text', async () => {
    for (const text of ['plain text', 'signs " ` $HOME \\ ! * ? [a] {b,c} ~ # & ; | < > ( )', 'first\nsecond\n\nfourth']) {
      expect(await run(`echo '${text}'`)).toMatchObject({ stdout: `${text}\n`, stderr: '', exitCode: 0 })
    }
  })

  // envd: C1
  test.each(['plain', '  spaces  ', 'quotes \' " ` $HOME \\ ! * ; & |', 'first\nsecond\n\nlast', 'ümläut 漢字 🦀'])('%j is printed unchanged', async (text) => {
    const result = await run('printf "%s\\n" "$TEXT"', { envs: { TEXT: text } })
    expect(result).toMatchObject({ stdout: `${text}\n`, stderr: '', exitCode: 0 })
  })

  // envd: C3
  test('both outputs and a nonzero exit', async () => {
    expect(await failureOf('echo out; echo err >&2; exit 3')).toMatchObject({ stdout: 'out\n', stderr: 'err\n', exitCode: 3 })
    expect((await failureOf('no-such-command-here')).exitCode).toBe(127)
    expect(await failureOf('kill -9 $$')).toMatchObject({ exitCode: -1, error: 'signal: killed' })
  })

  // envd: C4
  test('large output is complete, split characters are reassembled', async () => {
    const numbers = Array.from({ length: 100_000 }, (_, index) => `${index + 1}\n`).join('')
    expect((await run('seq 1 100000')).stdout).toBe(numbers)
    expect((await run('for i in $(seq 10000); do printf 漢; done')).stdout).toBe('漢'.repeat(10_000))
    // The last character is incomplete.
    expect((await run("head -c 8191 /dev/zero | tr '\\0' a; printf '\\342'")).stdout).toBe(`${'a'.repeat(8191)}\ufffd`)
  })

  test('output arrives while the command runs', async () => {
    const printed = new Transcript()
    const handle = await run('echo one; read line; echo two $line', { background: true, stdin: true, onStdout: printed.add })
    await printed.until('one')
    await handle.sendStdin('go\n')
    expect((await handle.wait()).stdout).toBe('one\ntwo go\n')
  })

  // envd: C2
  test('command timeout', async () => {
    expect((await run('sleep 0.2; echo done', { timeoutMs: 30_000 })).stdout).toBe('done\n')
    await expect(run('sleep 10', { timeoutMs: 1000 })).rejects.toThrow(TimeoutError)
    const handle = await run('sleep 10', { background: true, timeoutMs: 1000 })
    await expect(handle.wait()).rejects.toThrow(TimeoutError)
  })
})

describe('environment', () => {
  // envd: C10, C14
  test('variables, working directory and user', async () => {
    expect((await run('echo "$A|$B"', { envs: { A: '1', B: 'b c' } })).stdout).toBe('1|b c\n')
    expect((await run('python3 -c \'import os; print(os.environ["B"])\'', { envs: { B: 'b c' } })).stdout).toBe('b c\n')
    expect((await run('echo "${A-unset}"')).stdout).toBe('unset\n')
    expect((await run('pwd')).stdout).toBe('/home/user\n')
    expect((await run('pwd', { cwd: '/tmp' })).stdout).toBe('/tmp\n')
    await run('mkdir here')
    expect((await run('pwd; rmdir ~/here', { cwd: '~/here' })).stdout).toBe('/home/user/here\n')
    // Deleted; missing; not accessible for this user.
    await run('mkdir -p -m 700 /root/closed', { user: 'root' })
    for (const cwd of ['~/here', '/missing', '/root/closed']) {
      await expect(run('pwd', { cwd })).rejects.toThrow(InvalidArgumentError)
    }
    expect((await run('whoami')).stdout).toBe('user\n')
    expect((await run('whoami', { user: 'root' })).stdout).toBe('root\n')
    await expect(run('whoami', { user: 'nobody-here' })).rejects.toThrow(AuthenticationError)
  })
})

describe('input', () => {
  // envd: C11, C12
  test.each(['line\n', 'open end', '', 'ünï $x `y` \\z \'q\'\n\nlast\n', 'x'.repeat(200_000)])('input %# is echoed unchanged', async (text) => {
    const handle = await run('cat', { background: true, stdin: true })
    await handle.sendStdin(text)
    await handle.closeStdin()
    expect(await handle.wait()).toMatchObject({ stdout: text, stderr: '', exitCode: 0 })
  })

  // envd: C13
  test('without input read gets end of file', async () => {
    expect((await failureOf('read line', { user: 'root' })).exitCode).toBe(1)
  })

  // envd: C11, C12
  test('input as bytes', async () => {
    const handle = await run('od -An -tx1', { background: true, stdin: true })
    await sandbox.commands.sendStdin(handle.pid, new Uint8Array([0, 255, 128]))
    await sandbox.commands.closeStdin(handle.pid)
    expect((await handle.wait()).stdout.trim()).toBe('00 ff 80')
  })
})

describe('background', () => {
  // envd: C9
  test('background commands are listed', async () => {
    const handles = [await run('sleep 301', { background: true }), await run('sleep 302', { background: true })]
    const pids = (await sandbox.commands.list()).map(({ pid }) => pid)
    expect(pids).toEqual(expect.arrayContaining(handles.map(({ pid }) => pid)))
    for (const handle of handles) {
      await handle.kill()
      await expect(handle.wait()).rejects.toThrow(CommandExitError)
    }
  })

  // envd: C15
  test('a shell with a child and a development server are killed', async () => {
    const others = await sandbox.commands.list()
    const shell = await run('sleep 300 && echo done', { background: true, timeoutMs: 0 })
    const program = "require('http').createServer((_, response) => response.end()).listen(4173, () => console.log('ready'))"
    await sandbox.files.write('server.js', program)
    const printed = new Transcript()
    const server = await run('node server.js', { background: true, timeoutMs: 0, onStdout: printed.add })
    await printed.until('ready')
    for (const handle of [shell, server]) {
      const ended = handle.wait().catch((error) => error)
      expect(await handle.kill()).toBe(true)
      expect(await ended).toBeInstanceOf(CommandExitError)
    }
    expect(await sandbox.commands.list()).toEqual(others)
  })

  // envd: C17
  test('a late subscriber receives the end event', async () => {
    const handle = await run('read line; echo out; exit 3', { background: true, stdin: true, timeoutMs: 0 })
    await handle.disconnect()
    const waiting = await sandbox.commands.connect(handle.pid)
    await sandbox.commands.sendStdin(handle.pid, 'go\n')
    expect(await waiting.wait().catch((error) => error)).toMatchObject({ exitCode: 3, stdout: 'out\n' })
    const late = await sandbox.commands.connect(handle.pid)
    expect(await late.wait().catch((error) => error)).toMatchObject({ exitCode: 3, stdout: '' })
  })

  // envd: C5, C7, C17
  test('list, disconnect, reconnect and kill', async () => {
    const handle = await run('read line; echo got $line; sleep 300', { background: true, stdin: true, timeoutMs: 0 })
    expect((await sandbox.commands.list()).map(({ pid }) => pid)).toContain(handle.pid)
    await handle.disconnect()
    const printed = new Transcript()
    const again = await sandbox.commands.connect(handle.pid, { onStdout: printed.add, timeoutMs: 0 })
    expect(again.pid).toBe(handle.pid)
    await sandbox.commands.sendStdin(handle.pid, 'it\n')
    await printed.until('got it')
    const ended = again.wait().catch((error) => error)
    expect(await sandbox.commands.kill(handle.pid)).toBe(true)
    expect(await ended).toMatchObject({ exitCode: -1 })
    await failureOf(`kill -0 ${handle.pid}`, { user: 'root' })
    expect(await sandbox.commands.kill(handle.pid)).toBe(false)
  })

  // envd: C6, C8
  test('an unknown pid is not found', async () => {
    expect(await sandbox.commands.kill(UNKNOWN_PID)).toBe(false)
    await expect(sandbox.commands.connect(UNKNOWN_PID)).rejects.toThrow(NotFoundError)
    await expect(sandbox.commands.sendStdin(UNKNOWN_PID, 'x')).rejects.toThrow(NotFoundError)
  })
})

describe('terminals', () => {
  const bytes = (text) => new TextEncoder().encode(text)

  // envd: P1, P3, P5
  test('input, size and exit', async () => {
    const printed = new Transcript()
    const terminal = await sandbox.pty.create({ cols: 80, rows: 24, cwd: '/', envs: { ABC: '123' }, onData: printed.add })
    await sandbox.pty.sendInput(terminal.pid, bytes('echo "[$ABC $(pwd) $(stty size) $(tput cols)]"\n'))
    await printed.until('[123 / 24 80 80]')
    await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 40 })
    await sandbox.pty.sendInput(terminal.pid, bytes('echo "[$(stty size) $(tput cols)]"\n'))
    await printed.until('[40 100 100]')
    await sandbox.pty.sendInput(terminal.pid, bytes('exit\n'))
    expect((await terminal.wait()).exitCode).toBe(0)
  })

  // envd: P2
  test('disconnect and reconnect', async () => {
    const first = new Transcript()
    const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: first.add, timeoutMs: 0 })
    await sandbox.pty.sendInput(terminal.pid, bytes('echo first-$((40+2))\n'))
    await first.until('first-42')
    await terminal.disconnect()
    const second = new Transcript()
    const again = await sandbox.pty.connect(terminal.pid, { onData: second.add, timeoutMs: 0 })
    await sandbox.pty.sendInput(terminal.pid, bytes('echo second-$((40+3))\n'))
    await second.until('second-43')
    expect(again.pid).toBe(terminal.pid)
    expect(second.text).not.toContain('first-42')
    await sandbox.pty.sendInput(terminal.pid, bytes('exit\n'))
    expect((await again.wait()).exitCode).toBe(0)
  })

  // envd: P4
  test('kill', async () => {
    const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => {}, timeoutMs: 0 })
    const ended = terminal.wait().catch((error) => error)
    expect(await sandbox.pty.kill(terminal.pid)).toBe(true)
    await failureOf(`kill -0 ${terminal.pid}`, { user: 'root' })
    expect(await ended).toBeInstanceOf(CommandExitError)
    expect(await sandbox.pty.kill(terminal.pid)).toBe(false)
    expect(await sandbox.pty.kill(UNKNOWN_PID)).toBe(false)
  })
})
