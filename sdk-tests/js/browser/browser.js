// Opens a page of another origin than the server's in a real browser, with the SDK bundled as in a web application.

import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { fileURLToPath } from 'node:url'

import { chromium } from 'playwright-core'
import { build } from 'vite'

/** Returns the path of the machine's Chromium, which `scripts/packages.sh test` installs. */
function program() {
  return execFileSync('sh', ['-c', 'command -v chromium'], { encoding: 'utf8' }).trim()
}

/** Starts a headless browser. */
export function launch() {
  // Chromium's own sandbox does not work as root.
  return chromium.launch({ executablePath: program(), args: ['--no-sandbox'] })
}

/** Bundles `page.js` with its imports into one script. */
async function bundle() {
  const input = fileURLToPath(new URL('page.js', import.meta.url))
  const { output } = await build({
    configFile: false, root: fileURLToPath(new URL('.', import.meta.url)), logLevel: 'error',
    build: { write: false, minify: false, rolldownOptions: { input } },
  })
  return output[0].code
}

/** Opens a page with its own origin. The caller must call `close`. */
export async function openPage() {
  const script = await bundle()
  const server = createServer(({ url }, response) => {
    const isScript = url === '/page.js'
    response.setHeader('Content-Type', isScript ? 'text/javascript' : 'text/html')
    response.end(isScript ? script : '<!doctype html><meta charset="utf-8"><script type="module" src="/page.js"></script>')
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const close = async () => {
    await browser?.close()
    server.closeAllConnections()
    server.close()
  }
  let browser
  try {
    browser = await launch()
    const page = await browser.newPage()
    const preflights = await record(page)
    await page.goto(`http://127.0.0.1:${server.address().port}/`)
    await page.waitForFunction(() => globalThis.journey)
    return { page, preflights, close }
  } catch (error) {
    await close()
    throw error
  }
}

/** Records path and status of the browser's CORS preflights, which are visible only in its debugging protocol. */
async function record(page) {
  const protocol = await page.context().newCDPSession(page)
  const asked = new Map()
  const preflights = []
  protocol.on('Network.requestWillBeSent', ({ requestId, request }) => {
    if (request.method === 'OPTIONS') asked.set(requestId, new URL(request.url).pathname)
  })
  protocol.on('Network.responseReceived', ({ requestId, response }) => {
    if (asked.has(requestId)) preflights.push([asked.get(requestId), response.status])
  })
  await protocol.send('Network.enable')
  return preflights
}
