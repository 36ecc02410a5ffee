import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    // What needs names needs a domain.
    include: ['tests/**/*.test.js', ...(process.env.E2B_DOMAIN ? ['names/*.test.js'] : [])],
    globalSetup: ['./nothing-is-left.js'],
    // Under emulation a command takes up to a few seconds; a test that hangs must still end the run in time.
    testTimeout: 120_000,
    hookTimeout: 60_000,
    // One file after another: the machine has few processors, and sandboxes need them.
    fileParallelism: false,
  },
})
