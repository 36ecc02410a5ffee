// Runs the unmodified official E2B command line with its own home folder, so that it does not use the developer's configuration.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { eventually, Transcript } from './journeys.js'

const PROGRAM = join(import.meta.dirname, 'node_modules/@e2b/cli/dist/index.js')

/** E2B command line; `environment` is added to this process's variables, and `undefined` removes a variable. */
export class CommandLine {
  #environment
  #home = mkdtempSync(join(tmpdir(), 'hearth-cli-'))
  #opened = join(this.#home, 'opened')

  constructor(environment = {}) {
    // A fake `xdg-open` only records the URL.
    const opener = join(this.#home, 'xdg-open')
    writeFileSync(opener, `#!/bin/sh\nprintf %s "$1" > '${this.#opened}.new' && mv '${this.#opened}.new' '${this.#opened}'\n`)
    chmodSync(opener, 0o755)
    const path = `${this.#home}:${process.env.PATH}`
    const own = { HOME: this.#home, PATH: path, NO_UPDATE_NOTIFIER: '1', NO_COLOR: '1' }
    this.#environment = { ...process.env, ...own, ...environment }
  }

  /** File in which the command line stores the login. */
  get configFile() {
    return join(this.#home, '.e2b/config.json')
  }

  /** Starts a command. */
  start(...words) {
    const child = spawn(process.execPath, [PROGRAM, ...words], { env: this.#environment, timeout: 60_000 })
    const [stdout, stderr] = [new Transcript(), new Transcript()]
    child.stdout.on('data', stdout.add)
    child.stderr.on('data', stderr.add)
    const ended = once(child, 'close').then(([code, signal]) => {
      if (code === null) throw new Error(`e2b ${words.join(' ')} was killed by ${signal}: ${stdout.text}${stderr.text}`)
      return { stdout: stdout.text, stderr: stderr.text, code }
    })
    return { stdin: child.stdin, stdout, ended }
  }

  /** Runs a command with `input` as its standard input; returns its outputs and exit code. */
  async piped(input, ...words) {
    const { stdin, ended } = this.start(...words)
    stdin.end(input)
    return await ended
  }

  /** Runs a command with an empty standard input. */
  run = (...words) => this.piped('', ...words)

  /** Waits until the command line opens a page, and returns its URL. */
  async openedPage() {
    const url = await eventually(() => existsSync(this.#opened) && readFileSync(this.#opened, 'utf8'), 30_000)
    rmSync(this.#opened)
    return url
  }

  remove() {
    rmSync(this.#home, { recursive: true, force: true })
  }
}
